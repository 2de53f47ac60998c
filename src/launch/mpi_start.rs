//! A rank that begins with MPI: how it carries the invitation of rank 0 to all, and goes on with it or without.

use std::io;
#[cfg(feature = "mpi")]
use std::io::BufRead;

#[cfg(feature = "mpi")]
use crate::device::{self, MpiGroup, MpiSession};

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

    pub(super) fn end(self) -> Result<(), GaveUp> {
        Ok(())
    }
}

#[cfg(feature = "mpi")]
impl Joined {
    /// Reads the first line, joins MPI, brings everyone the text of rank 0 and says it. A rank that does not go on with
    /// MPI leaves it and begins anew by exec: MPI has threads, and NCCL is set up in an environment that only a process
    /// without threads can change. Nothing that was said to this rank is lost, as its worker waits for the text.
    ///
    /// # Errors
    /// MPI refuses, counts other ranks than the launcher, or not all ranks came.
    pub(super) fn begin() -> Result<Self, GaveUp> {
        use super::message::{Invite, Message};
        use std::os::unix::process::CommandExt;

        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map_err(GaveUp::other)?;
        let Invite { text, worker, place, launcher, keep } = serde_json::from_str(&line).map_err(GaveUp::other)?;
        // nobody else ends it: it reads no orders while it waits for MPI
        device::end_with_parent(worker).map_err(GaveUp::other)?;
        let (session, mut group) = MpiSession::begin().map_err(GaveUp::other)?;
        counted((group.rank(), group.size()), place, &launcher).map_err(GaveUp::input)?;
        let mut bytes = text.unwrap_or_default().into_bytes();
        bytes.resize(INVITE_BYTES, 0);
        let carried = group.broadcast(bytes, INVITE_LIMIT).map_err(GaveUp::other)?;
        let end = carried.iter().position(|byte| *byte == 0).unwrap_or(carried.len());
        let text = String::from_utf8_lossy(&carried[..end]).into_owned();
        if keep {
            super::rank::say(&Message::Invited { text });
            return Ok(Self { session: Some(session), group: Some(group) });
        }
        drop(group);
        session.end().map_err(GaveUp::other)?;
        device::outlive_parent().map_err(GaveUp::other)?;
        super::rank::say(&Message::Invited { text });
        let failed = std::process::Command::new(super::launcher::PROGRAM).arg0("rigscale").arg("rank").exec();
        Err(GaveUp::other(failed))
    }

    /// The communicator, which can be taken once; every wait of it ends after `limit`.
    pub(super) fn communicator(&mut self, limit: crate::units::Seconds) -> Option<crate::comm::Mpi> {
        self.group.take().map(|group| crate::comm::Mpi::over(group, limit))
    }

    /// Leaves MPI, together with all other ranks.
    ///
    /// # Errors
    /// The communicator is still in use.
    pub(super) fn end(self) -> Result<(), GaveUp> {
        let Self { session, group } = self;
        drop(group);
        session.map_or(Ok(()), MpiSession::end).map_err(GaveUp::other)
    }
}

/// MPI that was not started by the `mpirun` that started the job takes each process for a job of its own.
#[cfg(feature = "mpi")]
fn counted((rank, size): (usize, usize), told: (usize, usize), launcher: &str) -> Result<(), String> {
    if (rank, size) == told {
        return Ok(());
    }
    let ranks = |count| if count == 1 { "1 rank".to_owned() } else { format!("{count} ranks") };
    let counts = if size == told.1 {
        format!("MPI calls this rank {rank}, {launcher} rank {}", told.0)
    } else {
        format!("MPI counts {}, {launcher} started {}", ranks(size), told.1)
    };
    Err(format!("{counts}: use the mpirun of the MPI that rigscale was built with"))
}

/// As many bytes are carried, whatever the text; an invitation takes some 150.
#[cfg(feature = "mpi")]
const INVITE_BYTES: usize = 1024;

/// The invitation reaches ranks that have all joined already.
#[cfg(feature = "mpi")]
const INVITE_LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// Leaves MPI, where the rank has joined it.
///
/// # Errors
/// The communicator is still in use.
pub(super) fn leave(joined: Option<Joined>) -> Result<(), GaveUp> {
    joined.map_or(Ok(()), Joined::end)
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
