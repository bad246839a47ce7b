# A few seconds of work for the collector under Nix: what it prints depends on nothing but this text, so two collectors
# must agree on it. Attribute sets, lists, strings and thunks, of which some are kept to the end.
let
  inherit (builtins)
    attrNames attrValues bitXor concatStringsSep elemAt filter foldl' genList groupBy hashString length listToAttrs
    map match mul replaceStrings sort split stringLength substring toJSON toString fromJSON;

  modulo = a: b: a - b * (a / b);
  # A linear congruence that stays within 64 bits.
  random = seed: modulo (seed * 16807) 2147483647;
  randoms = seed: count:
    (foldl' (state: _: let next = random state.last; in { last = next; all = [ next ] ++ state.all; })
      { last = seed; all = [ ]; } (genList (n: n) count)).all;
  hash = numbers: foldl' (sum: n: modulo (sum * 31 + n) 1000000007) 7 numbers;

  # A tree of sets, kept; each round replaces some of its leaves.
  tree = depth: seed:
    if depth == 0 then { value = seed; name = "leaf-${toString seed}"; }
    else { left = tree (depth - 1) (random seed); right = tree (depth - 1) (random (seed + depth)); };
  sum = node: if node ? value then node.value + stringLength node.name else modulo (sum node.left + sum node.right) 1000000007;
  replace = node: path:
    if node ? value then node // { value = node.value + path; }
    else if modulo path 2 == 0 then node // { left = replace node.left (path / 2); }
    else node // { right = replace node.right (path / 2); };
  trees = foldl' (node: path: let next = replace node path; in builtins.seq (sum next.left) next) (tree 12 42)
    (randoms 7 400);

  # Sets by name: merged, grouped, sorted.
  sets = let
    entries = genList (n: { name = "key-${toString (modulo (random (n + 1)) 5000)}"; value = { inherit n; text = hashString "sha256" (toString n); }; }) 90000;
    table = listToAttrs entries;
    grouped = groupBy (entry: substring 0 1 entry.value.text) entries;
  in {
    names = length (attrNames table);
    groups = builtins.mapAttrs (_: group: hash (map (entry: entry.value.n) group)) grouped;
    merged = hash (map (value: value.n) (attrValues (foldl' (a: b: a // b) { }
      (genList (n: { "k${toString (modulo (random (n + 3)) 700)}" = { inherit n; }; }) 4000))));
  };

  # Strings: cut, joined, matched, there and back through JSON.
  strings = let
    line = n: "line ${toString n} of the text, ${toString (n * n)}; ";
    text = concatStringsSep "" (genList line 9000);
    words = filter builtins.isString (split "[ ;,]+" text);
    back = fromJSON (toJSON { inherit words; });
  in {
    words = length back.words;
    numbers = length (filter (word: match "[0-9]+" word != null) back.words);
    digest = hashString "sha256" (replaceStrings [ "line" "9" ] [ "row" "nine" ] text);
  };

  sorted = let all = sort (a: b: a < b) (randoms 99 2500); in { first = elemAt all 0; hash = hash all; };
in {
  inherit sets strings sorted;
  trees = sum trees;
  kept = sum (tree 13 5);
}
