//! Reading an agent's state folder without disturbing the agent.

use std::path::Path;

use revocast_core::replica::Config;
use revocast_core::state::Head;
use revocast_core::{Digest, Now, Replica};

use crate::output::Failure;

/// A head and the base image it names, as they were found.
pub struct Stored {
    /// The head.
    pub head: Vec<u8>,
    /// The same, decoded.
    pub decoded: Head,
    /// The base image.
    pub base: Option<Vec<u8>>,
}

/// The newest whole head in a folder, with its base.
pub fn newest(folder: &Path) -> Result<Stored, Failure> {
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap_or_default();
    let heads = ["head-a", "head-b"].map(read).into_iter().filter_map(|head| {
        let decoded = Head::decode(&head).ok()?;
        Some((head, decoded))
    });
    let Some((head, decoded)) = heads.max_by_key(|(_, decoded)| decoded.revision) else {
        return Err(Failure::plain("no-state", format!("{} holds no whole state", folder.display()))
            .help("name the --state folder of an agent that has followed a realm"));
    };
    let base = ["base-a", "base-b"].map(read).into_iter().find(|base| Some(Digest::of(base)) == decoded.base);
    Ok(Stored { head, decoded, base })
}

/// A replica that answers from stored state and follows nothing.
pub fn restore(stored: &Stored, now: Now) -> Result<Replica, Failure> {
    Replica::read(Config::exact(0), now, &stored.head, stored.base.as_deref())
        .map_err(|error| Failure::new("damaged-state", "the stored state cannot be used", &error))
}
