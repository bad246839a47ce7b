//! Tokens: a change of a page table that nobody flushed is a warning of the compiler.

use super::domain::{Kick, Shootdown};
use super::scope::Scope;
use crate::harvest::Harvest;

/// Separate ranges that a [`Stale`] keeps apart; with more it means the whole address space.
pub const RANGES: usize = if cfg!(loom) { 2 } else { 8 };

/// Entries were changed; translations made of the old ones may still be in use.
///
/// Redeemed by [`Publisher::publish`](super::Publisher::publish).
#[must_use = "processors may go on by the old entries, and their writes are lost: publish it"]
#[derive(Clone, Debug)]
pub struct Stale {
    ranges: [Scope; RANGES],
    len: usize,
}

impl Stale {
    /// Nothing was changed yet; to be [merged](Self::and) into.
    pub fn nothing() -> Self {
        Self { ranges: [Scope::All; RANGES], len: 0 }
    }

    /// The translations in `scope` are old.
    pub fn scope(scope: Scope) -> Self {
        let mut stale = Self::nothing();
        if !matches!(scope, Scope::Pages { count: 0, .. }) {
            stale.push(scope);
        }
        stale
    }

    /// The entry of one page, by its number, was changed.
    pub fn page(number: u64) -> Self {
        Self::scope(Scope::pages(number, 1))
    }

    /// Anything may have been changed.
    pub fn all() -> Self {
        Self::scope(Scope::All)
    }

    /// D bits were cleared by a harvest of entries, the first of which maps page number `first`.
    pub fn harvested(harvest: &Harvest, first: u64) -> Self {
        match harvest.span() {
            None => Self::nothing(),
            Some((from, to)) => {
                let first = first.saturating_add(from as u64);
                Self::scope(Scope::pages(first, (to - from) as u64 + 1))
            }
        }
    }

    /// Both.
    pub fn and(mut self, other: Self) -> Self {
        for scope in other.scopes() {
            self.push(*scope);
        }
        self
    }

    /// Whether nothing was changed.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.len == 0
    }

    /// Gives up the token without a flush.
    ///
    /// # Safety
    /// No processor has a translation of the changed entries that matters: they were not present before
    /// (of such none are kept: SDM §4.10.2.3), or only rights were given, for want of which the processor
    /// faults and looks again (§4.10.4.3).
    pub unsafe fn forget(self) {}

    pub(super) fn scopes(&self) -> &[Scope] {
        &self.ranges[..self.len]
    }

    fn push(&mut self, scope: Scope) {
        match self.scopes() {
            [Scope::All] => {}
            _ if scope == Scope::All || self.len == RANGES => {
                self.ranges[0] = Scope::All;
                self.len = 1;
            }
            _ => {
                self.ranges[self.len] = scope;
                self.len += 1;
            }
        }
    }
}

/// The generation was raised: who begins to run flushes. Who runs already may not have.
#[must_use = "vCPUs that run have not flushed yet: complete it, or see that it is settled"]
#[derive(Debug)]
pub struct Published<'a> {
    pub(super) shootdown: &'a Shootdown,
    pub(super) generation: u64,
}

/// No processor has an old translation, as of the [`Published`] that this was.
#[derive(Debug, PartialEq, Eq)]
pub struct Flushed {
    generation: u64,
}

impl Flushed {
    /// The generation up to which all have flushed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

impl<'a> Published<'a> {
    /// The generation that the flush has.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// For a stopped world, or a short try: whether nobody runs who has not flushed.
    ///
    /// # Errors
    /// The token, if somebody does.
    pub fn settled(self) -> Result<Flushed, Published<'a>> {
        match self.shootdown.behind(self.generation) {
            None => Ok(Flushed { generation: self.generation }),
            Some(_) => Err(self),
        }
    }

    /// Kicks those that run and have not flushed, and waits for them.
    pub fn complete(self, kick: &impl Kick) -> Flushed {
        self.shootdown.wait(self.generation, kick);
        Flushed { generation: self.generation }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_kept_apart_while_there_is_room() {
        let two = Stale::page(1).and(Stale::page(100));
        assert_eq!(two.scopes(), [Scope::pages(1, 1), Scope::pages(100, 1)]);
        let many = (0..=RANGES as u64).fold(Stale::nothing(), |s, i| s.and(Stale::page(i * 50)));
        assert_eq!(many.scopes(), [Scope::All]);
        assert_eq!(many.and(Stale::page(3)).scopes(), [Scope::All]);
        assert_eq!(two.and(Stale::all()).scopes(), [Scope::All]);
        assert!(Stale::nothing().and(Stale::nothing()).is_nothing());
    }

    #[test]
    fn a_harvest_makes_the_span_of_what_it_cleared_stale() {
        use core::sync::atomic::AtomicU64;
        let mut entries = [const { AtomicU64::new(1) }; 100];
        let mut bits = [0; 2];
        let harvest = crate::harvest::harvest(&entries, &mut bits);
        assert!(Stale::harvested(&harvest, 1000).is_nothing());
        *entries[7].get_mut() |= 64;
        *entries[9].get_mut() |= 64;
        let harvest = crate::harvest::harvest(&entries, &mut bits);
        assert_eq!(Stale::harvested(&harvest, 1000).scopes(), [Scope::pages(1007, 3)]);
    }
}
