//! A rank that begins with MPI: how it carries the invitation of rank 0 to all, and goes on with it or without.

use std::io;
#[cfg(feature = "mpi")]
use std::io::BufRead;

#[cfg(feature = "mpi")]
use crate::device::{MpiGroup, MpiSession};

use super::message::Exchange;
use super::rank::GaveUp;

/// MPI as a rank holds it.
#[cfg(feature = "mpi")]
pub(super) struct Joined {
    session: Option<MpiSession>,
    group: Option<MpiGroup>,
}

/// MPI as a rank holds it: this program was built without.
#[cfg(not(feature = "mpi"))]
pub(super) struct Joined;

#[cfg(not(feature = "mpi"))]
impl Joined {
    /// This program was built without MPI.
    ///
    /// # Errors
    /// Always: whoever starts ranks knows better.
    pub(super) fn begin() -> Result<Self, GaveUp> {
        Err(GaveUp::other(io::Error::new(
            io::ErrorKind::Unsupported,
            "this rigscale was built without the feature `mpi`",
        )))
    }

    pub(super) fn end(self) {}
}

#[cfg(feature = "mpi")]
impl Joined {
    /// Reads the first line, joins MPI, brings everyone the text of rank 0 and says it. A rank that does not go on with
    /// MPI leaves it and begins anew by exec: MPI has threads, and NCCL is set up in an environment that only a process
    /// without threads can change. Nothing that was said to this rank is lost, as its worker waits for the text.
    ///
    /// # Errors
    /// MPI refuses, or not all ranks came.
    pub(super) fn begin() -> Result<Self, GaveUp> {
        use super::message::{Invite, Message};
        use std::os::unix::process::CommandExt;

        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map_err(GaveUp::other)?;
        let Invite { text, keep } = serde_json::from_str(&line).map_err(GaveUp::other)?;
        let (session, mut group) = MpiSession::begin().map_err(GaveUp::other)?;
        let mut bytes = text.unwrap_or_default().into_bytes();
        bytes.resize(INVITE_BYTES, 0);
        let carried = group.broadcast(bytes, INVITE_LIMIT).map_err(GaveUp::other)?;
        let end = carried.iter().position(|byte| *byte == 0).unwrap_or(carried.len());
        let text = String::from_utf8_lossy(&carried[..end]).into_owned();
        if keep {
            super::rank::say(&Message::Invited { text });
            return Ok(Self { session: Some(session), group: Some(group) });
        }
        session.end();
        super::rank::say(&Message::Invited { text });
        let failed = std::process::Command::new(super::launcher::PROGRAM).arg0("rigscale").arg("rank").exec();
        Err(GaveUp::other(failed))
    }

    /// The communicator, which can be taken once; every wait of it ends after `limit`.
    pub(super) fn communicator(&mut self, limit: crate::units::Seconds) -> Option<crate::comm::Mpi> {
        self.group.take().map(|group| crate::comm::Mpi::over(group, limit))
    }

    /// Leaves MPI, together with all other ranks.
    pub(super) fn end(self) {
        if let Some(session) = self.session {
            session.end();
        }
    }
}

/// As many bytes are carried, whatever the text; an invitation takes some 150.
#[cfg(feature = "mpi")]
const INVITE_BYTES: usize = 1024;

/// The invitation reaches ranks that have all joined already.
#[cfg(feature = "mpi")]
const INVITE_LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// Leaves MPI, where the rank has joined it.
pub(super) fn leave(joined: Option<Joined>) {
    if let Some(joined) = joined {
        joined.end();
    }
}

/// Whether the assignment fits what the rank has joined.
pub(super) fn fits(exchange: Exchange, joined: bool) -> Result<(), GaveUp> {
    match (exchange == Exchange::Mpi) == joined {
        true => Ok(()),
        false => {
            Err(GaveUp::other(io::Error::other("the exchange of the assignment is not what this rank has joined")))
        }
    }
}
