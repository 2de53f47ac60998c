//! Where workers of one job meet: rank 0 listens and gathers, the others look for it, and whoever is let in is one of them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::units::Seconds;

use super::invitation::{Invitation, Met, NOTICE, Token, introduce, knock, notice, publish, welcomed};
use super::line::Line;
use super::place::{JobPlace, MeetingPlace};

/// One port is tried for so long before the next.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How often a worker tries to find rank 0, and rank 0 looks who has come.
const AGAIN: Duration = Duration::from_millis(20);

/// Strangers that may be in the middle of a handshake beside the job's own ranks.
const STRANGERS_MAX: usize = 16;

/// Why the ranks of a job did not meet, or lost each other.
#[derive(Debug, Error)]
pub enum MeetError {
    /// Rank 0 cannot listen.
    #[error("could not listen on {place}; name another with --meet HOST:PORT, an address of rank 0's host")]
    Listen {
        /// Host and ports.
        place: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The name leads to the loopback interface, which other hosts cannot reach.
    #[error(
        "{host} is the loopback interface on rank 0's host, which other hosts cannot reach; name an address of its \
         network with --meet ADDRESS:PORT"
    )]
    Loopback {
        /// As named.
        host: String,
    },
    /// The name stands for all interfaces.
    #[error(
        "{host} stands for every interface of rank 0's host; name the address of one that leads to the others with --meet \
         ADDRESS:PORT"
    )]
    Anywhere {
        /// As named.
        host: String,
    },
    /// How workers of one host find rank 0 could not be written.
    #[error("could not write {path}, by which workers of this host find rank 0")]
    Notice {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not everyone came to rank 0.
    #[error(
        "rank {missing} did not come to meet within {limit}; see whether it was started, and whether it can reach {place}"
    )]
    Late {
        /// Ranks.
        missing: String,
        /// How long was waited.
        limit: Seconds,
        /// Where.
        place: String,
    },
    /// Rank 0 was not found.
    #[error("did not meet rank 0 at {place} within {limit}: {last}")]
    NotMet {
        /// Where.
        place: String,
        /// How long was waited.
        limit: Seconds,
        /// How the last try ended.
        last: String,
    },
    /// Rank 0 does not take this worker.
    #[error("rank 0 refuses this worker: {why}")]
    Refused {
        /// In its words.
        why: String,
    },
    /// The user, or the launcher, ended the job while ranks met.
    #[error("the job was ended while its ranks met")]
    Interrupted,
}

/// By rank, what each worker said about itself, and its connection; none for those that did not come.
pub(super) type Come<H> = Vec<Option<(H, Line)>>;

/// Rank 0's side while ranks meet.
pub(super) struct Meeting {
    listener: TcpListener,
    invitation: Invitation,
    token: Token,
    /// Removed once the meeting is over.
    notice: Option<PathBuf>,
}

impl Meeting {
    /// For ranks of this host alone: on the loopback interface, under a port and a token that a file in `folder`, which
    /// only this user can read, gives to the others.
    ///
    /// # Errors
    /// The host refuses, or the file cannot be written.
    pub(super) fn on_this_host(folder: &Path) -> Result<Self, MeetError> {
        let place = MeetingPlace { host: Ipv4Addr::LOCALHOST.to_string(), ports: vec![0] };
        let mut meeting = Self::listen(&place, Token::random())?;
        let path = folder.join(NOTICE);
        publish(&path, &meeting.invitation).map_err(|source| MeetError::Notice { path: path.clone(), source })?;
        meeting.notice = Some(path);
        Ok(meeting)
    }

    /// For ranks of several hosts, on the interface of `place`, under the first of its ports that is free. With `random`
    /// the token is a new one, which [`Meeting::invitation`] must carry to the others.
    ///
    /// # Errors
    /// No such address, every port is taken, or it is the loopback interface, or any.
    pub(super) fn at(place: &MeetingPlace, job: &JobPlace, random: bool) -> Result<Self, MeetError> {
        let known = Invitation::to(place, job).token().filter(|_| !random);
        let meeting = Self::listen(place, known.unwrap_or_else(Token::random))?;
        match meeting.listener.local_addr() {
            Ok(address) if address.ip().is_loopback() && !job.one_host => {
                Err(MeetError::Loopback { host: place.host.clone() })
            }
            Ok(address) if address.ip().is_unspecified() => Err(MeetError::Anywhere { host: place.host.clone() }),
            _ => Ok(meeting),
        }
    }

    fn listen(place: &MeetingPlace, token: Token) -> Result<Self, MeetError> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in addresses(&place.host, &place.ports) {
            match address.and_then(TcpListener::bind).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok((listener.local_addr()?, listener))
            }) {
                Ok((address, listener)) => {
                    let invitation = Invitation {
                        host: on_link(address.ip(), &place.host),
                        ports: vec![address.port()],
                        token: token.text(),
                    };
                    return Ok(Self { listener, invitation, token, notice: None });
                }
                Err(error) => last = error,
            }
        }
        let place = Invitation { host: place.host.clone(), ports: place.ports.clone(), token: String::new() }.place();
        Err(MeetError::Listen { place, source: last })
    }

    /// What others need to come.
    pub(super) fn invitation(&self) -> &Invitation {
        &self.invitation
    }

    /// Waits until one worker for each of `world` ranks has come; gives what each said about itself, and its connection,
    /// by rank. `refuse` says why one cannot take part, beside those that are here.
    ///
    /// # Errors
    /// Not all came within `limit`, or `stop` was set; those that came are given then, too.
    pub(super) fn gather<H: DeserializeOwned + Send + 'static>(
        self,
        world: usize,
        (limit, stop): (Seconds, &AtomicBool),
        admit: impl Fn(&H) -> Result<usize, String>,
    ) -> (Come<H>, Result<(), MeetError>) {
        let deadline = Instant::now() + Duration::from_secs_f64(limit.0);
        let mut come: Come<H> = (0..world).map(|_| None).collect();
        let (say, said) = mpsc::channel();
        let mut away = 0;
        while come.iter().any(Option::is_none) {
            if stop.load(Ordering::Relaxed) {
                return (come, Err(MeetError::Interrupted));
            }
            if deadline <= Instant::now() {
                let missing: Vec<String> =
                    (0..world).filter(|rank| come[*rank].is_none()).map(|rank| rank.to_string()).collect();
                let place = self.invitation.place();
                return (come, Err(MeetError::Late { missing: missing.join(", "), limit, place }));
            }
            while away < world + STRANGERS_MAX
                && let Ok((stream, _)) = self.listener.accept()
            {
                let (token, say) = (self.token, say.clone());
                let receive = move || drop(say.send(introduce(stream, &token).ok()));
                away += usize::from(thread::Builder::new().name("meeting".into()).spawn(receive).is_ok());
            }
            while let Ok(introduced) = said.try_recv() {
                away -= 1;
                let Some((hello, line, welcome)) = introduced else { continue };
                let rank = admit(&hello).and_then(|rank| match come.get(rank) {
                    Some(None) => Ok(rank),
                    Some(Some(_)) => Err(format!("two workers call themselves rank {rank}")),
                    None => Err(format!("there is no rank {rank} in a job of {world}")),
                });
                if let Some((rank, line)) = welcomed(line, welcome, rank) {
                    come[rank] = Some((hello, line));
                }
            }
            thread::sleep(AGAIN);
        }
        (come, Ok(()))
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        if let Some(notice) = &self.notice {
            let _ = std::fs::remove_file(notice);
        }
    }
}

/// The addresses of a host under each port, in order of the ports.
fn addresses(host: &str, ports: &[u16]) -> Vec<io::Result<SocketAddr>> {
    match (host, 0).to_socket_addrs() {
        Ok(found) => {
            let found: Vec<SocketAddr> = found.collect();
            let under = |port: &u16| {
                let port = *port;
                found.clone().into_iter().map(move |mut address| {
                    address.set_port(port);
                    Ok(address)
                })
            };
            ports.iter().flat_map(under).collect()
        }
        Err(error) => vec![Err(error)],
    }
}

/// An address as others can use it: one that holds on a single link is nothing without the link, which `named` may name.
fn on_link(address: IpAddr, named: &str) -> String {
    let link = named.split_once('%').map_or_else(String::new, |(_, link)| format!("%{link}"));
    format!("{address}{link}")
}

/// Where a worker looks for rank 0.
pub(super) enum Way<'a> {
    /// The notice in a run folder.
    Notice(&'a Path),
    /// An invitation at hand.
    Invited(Invitation),
}

/// Goes to rank 0 and introduces itself with `hello`; tries until `limit`, as rank 0 may start later.
///
/// # Errors
/// Rank 0 was not found or refuses, or `stop` was set.
pub(super) fn meet(way: &Way, hello: &impl Serialize, limit: Seconds, stop: &AtomicBool) -> Result<Met, MeetError> {
    let deadline = Instant::now() + Duration::from_secs_f64(limit.0);
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(MeetError::Interrupted);
        }
        let invitation = match way {
            Way::Invited(invitation) => Ok(invitation.clone()),
            Way::Notice(folder) => notice(&folder.join(NOTICE)),
        };
        let last = match invitation.and_then(|invitation| try_all(&invitation, hello, (deadline, stop))) {
            Ok(Ok(met)) => return Ok(met),
            Ok(Err(why)) => return Err(MeetError::Refused { why }),
            Err(error) => error.to_string(),
        };
        if deadline <= Instant::now() {
            let place = match way {
                Way::Invited(invitation) => invitation.place(),
                Way::Notice(folder) => folder.join(NOTICE).display().to_string(),
            };
            return Err(MeetError::NotMet { place, limit, last });
        }
        thread::sleep(AGAIN);
    }
}

/// Tries each address, until `deadline` or `stop`. Inside: why rank 0 refuses.
fn try_all(
    invitation: &Invitation,
    hello: &impl Serialize,
    (deadline, stop): (Instant, &AtomicBool),
) -> io::Result<Result<Met, String>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "the invitation holds no token");
    let token = invitation.token().ok_or_else(wrong)?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for (index, address) in addresses(&invitation.host, &invitation.ports).into_iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now()).max(AGAIN);
        if index > 0 && (left == AGAIN || stop.load(Ordering::Relaxed)) {
            break;
        }
        let tried = address.and_then(|address| TcpStream::connect_timeout(&address, CONNECT_LIMIT.min(left)));
        match tried.and_then(|stream| knock(stream, &token, hello)) {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};

    use super::*;
    use crate::launch::JobLauncher;
    use crate::launch::invitation::HANDSHAKE_LIMIT;

    const LONG: Seconds = Seconds(20.0);
    const SHORT: Seconds = Seconds(0.5);

    fn job(name: &str) -> JobPlace {
        JobPlace {
            launcher: JobLauncher::Torchrun,
            rank: 0,
            world: 2,
            local_rank: 0,
            one_host: true,
            job: name.into(),
            meeting: None,
            mpi: false,
        }
    }

    fn admit(rank: &usize) -> Result<usize, String> {
        if *rank == 7 { Err("seven is refused".into()) } else { Ok(*rank) }
    }

    fn go(way: &Way, rank: usize, limit: Seconds) -> Result<Met, MeetError> {
        meet(way, &rank, limit, &AtomicBool::new(false))
    }

    /// Rank 0 of `world`, on a thread, while `others` come.
    fn gathered<T>(
        meeting: Meeting,
        world: usize,
        limit: Seconds,
        others: impl FnOnce() -> T,
    ) -> (usize, Option<MeetError>, T) {
        thread::scope(|scope| {
            let rank_0 = scope.spawn(|| meeting.gather(world, (limit, &AtomicBool::new(false)), admit));
            let others = others();
            let (come, met) = rank_0.join().unwrap();
            (come.iter().flatten().count(), met.err(), others)
        })
    }

    #[test]
    fn ranks_of_a_host_meet_through_a_notice_that_goes_away() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let meeting = Meeting::on_this_host(folder.path()).unwrap();
        let notice = folder.path().join(NOTICE);
        assert_eq!(fs::metadata(&notice).unwrap().permissions().mode() & 0o777, 0o600);
        let way = Way::Notice(folder.path());
        let (come, error, met) = gathered(meeting, 2, LONG, || [1, 0].map(|rank| go(&way, rank, LONG).unwrap()));
        assert!(come == 2 && error.is_none() && !notice.exists());
        for met in met {
            assert!(met.ahead.0.abs() < 0.1, "the same clock: {:?}", met.ahead);
        }
        let error = go(&way, 1, SHORT).err().unwrap();
        assert!(matches!(error, MeetError::NotMet { .. }), "{error}");
        fs::write(&notice, r#"{"host":"192.0.2.1","ports":[1],"token":""}"#).unwrap();
        for (mode, why) in [(0o640, "it is not this user's alone"), (0o600, "it leads away from this host")] {
            fs::set_permissions(&notice, fs::Permissions::from_mode(mode)).unwrap();
            let error = go(&way, 1, SHORT).err().unwrap().to_string();
            assert!(error.ends_with(why), "{error}");
        }
    }

    #[test]
    fn a_port_that_somebody_holds_is_passed_over_and_hears_nothing() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = MeetingPlace { host: "127.0.0.1".into(), ports: vec![port, free] };
        let meeting = Meeting::at(&place, &job("a"), false).unwrap();
        assert_eq!(meeting.invitation().ports, [free]);
        let heard = thread::spawn(move || {
            let (mut stream, _) = holder.accept().unwrap();
            stream.write_all(b"220 another service\n").unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).unwrap();
            heard
        });
        let way = Way::Invited(Invitation::to(&place, &job("a")));
        let (come, _, met) = gathered(meeting, 1, LONG, || go(&way, 0, LONG).map(drop));
        met.unwrap();
        assert_eq!((come, heard.join().unwrap().len()), (1, 0));
    }

    #[test]
    fn strangers_do_not_get_in_and_what_is_refused_says_why() {
        let place = MeetingPlace { host: "127.0.0.1".into(), ports: vec![0] };
        let meeting = Meeting::at(&place, &job("a"), true).unwrap();
        let own = meeting.invitation().clone();
        let other = Invitation { token: "00".repeat(32), ..own.clone() };
        let address = (own.host.clone(), own.ports[0]);
        let (come, error, outcomes) = gathered(meeting, 2, Seconds(2.0), || {
            let mut garbage = TcpStream::connect(address).unwrap();
            garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let stranger = go(&Way::Invited(other), 1, SHORT);
            let own = Way::Invited(own);
            let first = go(&own, 1, LONG);
            [stranger, go(&own, 1, LONG), go(&own, 5, LONG), go(&own, 7, LONG), first].map(|met| met.map(drop))
        });
        let words = outcomes.map(|outcome| outcome.err().map_or_else(String::new, |error| error.to_string()));
        assert!(words[0].contains("belongs to another job, or holds another RIGSCALE_TOKEN"), "{}", words[0]);
        assert!(words[1].ends_with("two workers call themselves rank 1"), "{}", words[1]);
        assert!(words[2].ends_with("there is no rank 5 in a job of 2"), "{}", words[2]);
        assert!(words[3].ends_with("seven is refused"), "{}", words[3]);
        assert!(words[4].is_empty(), "{}", words[4]);
        assert_eq!(come, 1);
        let error = error.unwrap().to_string();
        assert!(error.starts_with("rank 0 did not come to meet within"), "{error}");
    }

    #[test]
    fn the_loopback_interface_joins_no_two_hosts() {
        let place = MeetingPlace { host: "127.0.0.1".into(), ports: vec![0] };
        let error = Meeting::at(&place, &JobPlace { one_host: false, ..job("a") }, false).err().unwrap();
        assert!(matches!(error, MeetError::Loopback { .. }), "{error}");
        let everywhere = MeetingPlace { host: "0.0.0.0".into(), ports: vec![0] };
        let error = Meeting::at(&everywhere, &JobPlace { one_host: false, ..job("a") }, false).err().unwrap();
        assert!(matches!(error, MeetError::Anywhere { .. }), "{error}");
        let place = MeetingPlace { host: "192.0.2.1".into(), ports: vec![0] };
        let error = Meeting::at(&place, &job("a"), false).err().unwrap().to_string();
        assert!(error.contains("could not listen on 192.0.2.1:0"), "{error}");
    }

    #[test]
    fn silent_strangers_keep_no_place_and_an_ended_job_is_not_waited_for() {
        let place = MeetingPlace { host: "127.0.0.1".into(), ports: vec![0] };
        let meeting = Meeting::at(&place, &job("a"), true).unwrap();
        let own = meeting.invitation().clone();
        let address = (own.host.clone(), own.ports[0]);
        // as many as may be in the middle of a handshake, and none says a word
        let (come, error, waited) = gathered(meeting, 1, LONG, || {
            let strangers: Vec<TcpStream> =
                (0..=STRANGERS_MAX).map(|_| TcpStream::connect(address.clone()).unwrap()).collect();
            let begun = Instant::now();
            go(&Way::Invited(own), 0, LONG).unwrap();
            drop(strangers);
            begun.elapsed()
        });
        assert!(come == 1 && error.is_none());
        assert!(waited < 2 * HANDSHAKE_LIMIT, "took {waited:?}");
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = silent.local_addr().unwrap();
        let way = Way::Invited(Invitation {
            host: "127.0.0.1".into(),
            ports: vec![here.port(); 1000],
            token: "00".repeat(32),
        });
        let stop = AtomicBool::new(false);
        let error = thread::scope(|scope| {
            let meeting = scope.spawn(|| meet(&way, &0, Seconds(1e3), &stop).err());
            let first = silent.accept().unwrap();
            stop.store(true, Ordering::Relaxed);
            drop(first);
            meeting.join().unwrap()
        });
        assert!(matches!(error, Some(MeetError::Interrupted)), "{error:?}");
    }

    #[test]
    fn an_address_of_a_link_keeps_the_name_of_the_link() {
        assert_eq!(on_link("fe80::1".parse().unwrap(), "fe80::1%eth0"), "fe80::1%eth0");
        assert_eq!(on_link("192.0.2.1".parse().unwrap(), "node7"), "192.0.2.1");
        assert_eq!(addresses("localhost", &[1, 2]).into_iter().flatten().map(|to| to.port()).max(), Some(2));
    }
}
