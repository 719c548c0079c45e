//! What makes one snapshot another.

use std::{collections::BTreeMap, sync::Arc};

use crate::snapshot::{page::Item, resource::Resource};

/// What a publish round changes, by slice and name; `None` removes.
pub type Changes = BTreeMap<(usize, Arc<str>), Option<Resource>>;

/// What is different in one set of resources from an older one; each list in the order of slices and names.
#[derive(Debug, Default)]
pub struct Difference<'a> {
    /// New, or with other content.
    pub changed: Vec<&'a Item>,
    /// Gone.
    pub removed: Vec<&'a Arc<str>>,
}
