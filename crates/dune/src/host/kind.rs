//! Which kind of host it is.
