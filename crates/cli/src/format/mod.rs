//! Output: tables, units, Go templates.

pub(crate) mod table;
pub(crate) mod template;
pub(crate) mod units;
