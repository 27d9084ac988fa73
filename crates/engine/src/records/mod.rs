//! The records as they are written to disk: in the store's tables, and in the copies beside the
//! containers.

pub(crate) mod text;
