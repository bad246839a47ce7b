//! What is measured: the workloads of the benchmark, in one table (program, arguments, what each
//! shows), or a program of the user's.

use std::path::Path;

use clap::builder::PossibleValuesParser;

/// One row of the benchmark: a program below `workloads/` with arguments of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    /// The name on the command line and in reports.
    pub(crate) name: &'static str,
    /// The program.
    pub(crate) program: &'static str,
    /// Arguments in a full benchmark.
    pub(crate) full: &'static [&'static str],
    /// Factor of the sizes in a quick one.
    pub(crate) quick_scale: f64,
    /// What it does, in a few words.
    pub(crate) title: &'static str,
    /// A path that has to be there, and the Debian package that has it.
    pub(crate) needs: Option<(&'static str, &'static str)>,
    /// How many times faster than the better baseline's same mode the patched collector's
    /// generational and incremental modes are meant to be; 1.0 means "not slower".
    pub(crate) target: f64,
}

/// Where Debian has Unicode's locale data.
const CLDR: &str = "/usr/share/unicode/cldr";

/// All workloads. Sizes are the programs' defaults (those of the Dune paper where it has
/// the workload) unless arguments say otherwise.
pub(crate) const ALL: &[Workload] = &[
    Workload {
        name: "gcbench",
        program: "gcbench",
        full: &[],
        quick_scale: 0.2,
        title: "short-lived binary trees beside long-lived data",
        needs: None,
        target: 1.0,
    },
    Workload {
        name: "list",
        program: "list",
        full: &[],
        quick_scale: 0.2,
        title: "linked lists of growing length, built, summed and dropped",
        needs: None,
        target: 1.0,
    },
    Workload {
        name: "hashmap",
        program: "hashmap",
        full: &[],
        quick_scale: 0.08,
        title: "a hash map whose 4,000-byte values are replaced all the time",
        needs: None,
        target: 2.0,
    },
    Workload {
        name: "xml",
        program: "xml",
        full: &[],
        quick_scale: 0.1,
        title: "the DOM of one XML document of 150 MB",
        needs: None,
        target: 1.0,
    },
    Workload {
        name: "xml-ten",
        program: "xml",
        full: &["--bytes", "15000000", "--repeat", "10"],
        quick_scale: 0.2,
        title: "the DOMs of ten XML documents of 15 MB, one after the other",
        needs: None,
        target: 1.0,
    },
    Workload {
        name: "xml-cldr",
        program: "xml",
        full: &["--files", CLDR],
        quick_scale: 0.2,
        title: "the DOMs of 2,000 real XML documents, Unicode's locale data",
        needs: Some((CLDR, "unicode-cldr-core")),
        target: 1.0,
    },
    Workload {
        name: "tree-scattered",
        program: "tree",
        full: &["--pattern", "scattered"],
        quick_scale: 0.25,
        title: "a large live tree, mutated at random places",
        needs: None,
        target: 1.4,
    },
    Workload {
        name: "tree-clustered",
        program: "tree",
        full: &["--pattern", "clustered"],
        quick_scale: 0.25,
        title: "a large live tree, mutated place by place",
        needs: None,
        target: 1.4,
    },
    Workload {
        name: "mtalloc-1",
        program: "mtalloc",
        full: &["--threads", "1"],
        quick_scale: 0.2,
        title: "short-lived lists and trees, one thread",
        needs: None,
        target: 1.0,
    },
    Workload {
        name: "mtalloc-2",
        program: "mtalloc",
        full: &["--threads", "2"],
        quick_scale: 0.2,
        title: "short-lived lists and trees, two threads",
        needs: None,
        target: 1.0,
    },
    Workload {
        name: "mtalloc-4",
        program: "mtalloc",
        full: &["--threads", "4"],
        quick_scale: 0.2,
        title: "short-lived lists and trees, four threads",
        needs: None,
        target: 1.0,
    },
];

/// The ten documents of the Dune paper, with its sizes: it is in `bench paper` only.
pub(crate) const TEN_DOCUMENTS: Workload = Workload {
    name: "xml-ten-150",
    program: "xml",
    full: &["--repeat", "10"],
    quick_scale: 0.02,
    title: "the DOMs of ten XML documents of 150 MB, one after the other",
    needs: None,
    target: 1.0,
};

impl Workload {
    /// Why it cannot be run on this machine, if it cannot.
    pub(crate) fn unavailable(&self) -> Option<String> {
        let (path, package) = self.needs?;
        let missing = !std::path::Path::new(path).exists();
        missing.then(|| format!("{path} is not there (apt-get install {package})"))
    }
}

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    /// One of the project's workloads, which tells its own measurements and results.
    Ours(&'static Workload),
    /// A program of the user's, which a preloaded object watches.
    Theirs(Program),
}

/// A program of the user's.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The program and its arguments.
    words: Vec<String>,
    /// Whether all its runs are to have the same output: until two runs on one collector have not.
    pub(crate) output_is_compared: bool,
}

impl Program {
    /// The program with these words, if there is one.
    pub(crate) fn new(words: &[String]) -> Option<Self> {
        let there_is_one = !words.is_empty();
        there_is_one.then(|| Self { words: words.to_vec(), output_is_compared: true })
    }

    /// What is executed.
    pub(crate) fn path(&self) -> &Path {
        Path::new(&self.words[0])
    }

    /// Its arguments.
    pub(crate) fn arguments(&self) -> &[String] {
        &self.words[1..]
    }

    /// As a shell would read it.
    pub(crate) fn command(&self) -> String {
        let words = self.words.iter().map(String::as_str);
        shlex::try_join(words).expect("an argument of a process has no NUL in it")
    }
}

impl Subject {
    /// The name in reports.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Ours(workload) => workload.name.to_owned(),
            Self::Theirs(program) => {
                program.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
            }
        }
    }

    /// What it does, in a few words.
    pub(crate) fn title(&self) -> String {
        match self {
            Self::Ours(workload) => workload.title.to_owned(),
            Self::Theirs(program) => {
                let same = match program.output_is_compared {
                    true => "the same output is asked for in every run",
                    false => "its output differs from run to run, and so is not compared",
                };
                format!("a program of yours; {same}")
            }
        }
    }

    /// Why it cannot be run on this machine, if it cannot.
    pub(crate) fn unavailable(&self) -> Option<String> {
        match self {
            Self::Ours(workload) => workload.unavailable(),
            Self::Theirs(_) => None,
        }
    }

    /// As [`Workload::target`].
    pub(crate) fn target(&self) -> f64 {
        match self {
            Self::Ours(workload) => workload.target,
            Self::Theirs(_) => 1.0,
        }
    }
}

/// What `--workload` takes.
pub(crate) fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(ALL.iter().map(|workload| workload.name))
}

/// The workloads with these names, in the table's order; all of them for none.
pub(crate) fn select(names: &[String]) -> Vec<&'static Workload> {
    ALL.iter().filter(|w| names.is_empty() || names.iter().any(|name| name == w.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_corpus_names_its_package() {
        assert_eq!(ALL[0].unavailable(), None);
        let workload = Workload { needs: Some(("/nonexistent", "some-package")), ..ALL[0] };
        let why = workload.unavailable().expect("it is not there");
        assert!(why.contains("apt-get install some-package"), "{why}");
    }

    #[test]
    fn names_are_unique_and_select_keeps_the_tables_order() {
        let mut names: Vec<_> = ALL.iter().map(|w| w.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());

        let asked = ["xml".to_owned(), "gcbench".to_owned()];
        let chosen: Vec<_> = select(&asked).iter().map(|w| w.name).collect();
        assert_eq!(chosen, ["gcbench", "xml"]);
        assert_eq!(select(&[]).len(), ALL.len());
    }
}
