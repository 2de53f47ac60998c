//! Who may come to a meeting: an invitation says where it is and carries the job's token, and each side of a connection
//! proves that it knows the token before it believes the other.
//!
//! Rank 0 speaks first and a worker says nothing to anyone who does
//! not greet as rank 0 does, so that a stranger's service on a port that is tried hears nothing it could choke on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::device::Clock;
use crate::units::Seconds;

use super::line::{HANDSHAKE_BYTES_MAX, Line};
use super::place::{JobPlace, MeetingPlace};

/// Each half of a handshake, up to the proof and from there on, takes round trips, not seconds: who is slower makes room for
/// others.
pub(super) const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Round trips by which a worker learns how rank 0's clock stands beside its own; the shortest counts.
const CLOCK_TRIPS: usize = 8;

/// File in the run folder through which workers of one host find rank 0, until all have.
pub(super) const NOTICE: &str = "meeting.json";

/// Name and version of what is spoken.
const PROTOCOL: &str = "rigscale-meeting-1";

/// Variable that holds a secret which workers of several hosts share.
pub const TOKEN_VARIABLE: &str = "RIGSCALE_TOKEN";

/// A shared secret of 32 bytes; nothing shows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Token([u8; 32]);

impl Token {
    pub(super) fn random() -> Self {
        Self(rand::random())
    }

    /// For ranks of several hosts that cannot be handed one: from the job's name and the secret that the user set. A
    /// job's name keeps other jobs out, not somebody who means it; the secret does.
    fn of_job(job: &str, secret: &str) -> Self {
        Self(digest(&[job.as_bytes(), secret.as_bytes()]))
    }

    /// As an invitation carries it.
    pub(super) fn text(&self) -> String {
        hex(&self.0)
    }

    /// What proves to the other side that this one knows the token: SHA-256 over the token and a hash of token, role and
    /// both sides' numbers, which are new for each connection.
    fn proof(&self, role: &str, numbers: [&str; 2]) -> String {
        let inner = digest(&[&self.0, role.as_bytes(), numbers[0].as_bytes(), numbers[1].as_bytes()]);
        hex(&digest(&[&self.0, &inner]))
    }
}

/// SHA-256 over parts, each after its length.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.chars().map(|digit| Some(digit.to_digit(16)? as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    (digits.len() == 64).then(|| bytes.try_into().ok())?
}

/// All that a worker must know to find rank 0.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Invitation {
    pub(super) host: String,
    pub(super) ports: Vec<u16>,
    pub(super) token: String,
}

impl Invitation {
    /// To a place that every rank knows.
    pub(super) fn to(place: &MeetingPlace, job: &JobPlace) -> Self {
        let secret = std::env::var(TOKEN_VARIABLE).unwrap_or_default();
        let token = Token::of_job(&job.job, &secret).text();
        Self { host: place.host.clone(), ports: place.ports.clone(), token }
    }

    pub(super) fn token(&self) -> Option<Token> {
        unhex(&self.token).map(Token)
    }

    pub(super) fn place(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let [first, .., last] = self.ports[..] else { return format!("{host}:{}", self.ports[0]) };
        format!("{host}:{first}-{last}")
    }
}

/// What rank 0 says first.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Greeting {
    protocol: String,
    number: String,
}

/// What a worker answers.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Introduction<H> {
    number: String,
    proof: String,
    hello: H,
}

/// How rank 0 answers a worker that knows the token.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Welcome {
    proof: String,
    refused: Option<String>,
}

/// A question for rank 0's clock, and its answer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockTrip {
    now_s: Seconds,
}

/// Writes the invitation so that it is whole once it is there, for this user's eyes only.
pub(super) fn publish(path: &Path, invitation: &Invitation) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(&serde_json::to_vec(invitation)?)?;
    fs::rename(draft, path)
}

/// The notice of rank 0 in the run folder. Whoever wrote it can give orders, so that it must be this user, and nobody else
/// may know its token.
pub(super) fn notice(path: &Path) -> io::Result<Invitation> {
    let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let file = File::open(path)?;
    let about = file.metadata()?;
    if about.uid() != geteuid().as_raw() || about.mode() & 0o077 != 0 {
        return Err(wrong("it is not this user's alone"));
    }
    let mut text = Vec::new();
    file.take(HANDSHAKE_BYTES_MAX).read_to_end(&mut text)?;
    let invitation: Invitation = serde_json::from_slice(&text)?;
    let loopback = invitation.host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    if loopback { Ok(invitation) } else { Err(wrong("it leads away from this host")) }
}

/// Rank 0's half of the handshake: greets, and hears who knows the token.
pub(super) fn introduce<H: DeserializeOwned>(stream: TcpStream, token: &Token) -> io::Result<(H, Line, Welcome)> {
    stream.set_nonblocking(false)?;
    let mut line = Line::of(stream, Instant::now() + HANDSHAKE_LIMIT)?;
    let own = Token::random().text();
    line.write(&Greeting { protocol: PROTOCOL.into(), number: own.clone() })?;
    let Introduction { number, proof, hello } = line.read()?;
    let numbers = [own.as_str(), number.as_str()];
    if proof != token.proof("worker", numbers) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok((hello, line, Welcome { proof: token.proof("rank 0", numbers), refused: None }))
}

/// Answers a worker; one that is taken is told the time as often as it asks, a few round trips.
pub(super) fn welcomed(mut line: Line, mut welcome: Welcome, rank: Result<usize, String>) -> Option<(usize, Line)> {
    line.until(Instant::now() + HANDSHAKE_LIMIT);
    welcome.refused = rank.clone().err();
    line.write(&welcome).ok()?;
    let rank = rank.ok()?;
    for _ in 0..CLOCK_TRIPS {
        line.read::<ClockTrip>().ok()?;
        line.write(&ClockTrip { now_s: Clock::monotonic() }).ok()?;
    }
    Some((rank, line))
}

/// A worker's way to rank 0.
pub(super) struct Met {
    /// The connection.
    pub(super) line: Line,
    /// This host's monotonic clock less that of rank 0's host, from the shortest round trip.
    pub(super) ahead: Seconds,
}

/// A worker's half of the handshake.
pub(super) fn knock(stream: TcpStream, token: &Token, hello: &impl Serialize) -> io::Result<Result<Met, String>> {
    let stranger = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut line = Line::of(stream, Instant::now() + HANDSHAKE_LIMIT)?;
    let greeting: Greeting = line.read().map_err(|_| stranger("somebody listens there who is not rank 0"))?;
    if greeting.protocol != PROTOCOL {
        return Err(stranger(&format!("rank 0 speaks {:?}, another version than this worker", greeting.protocol)));
    }
    let own = Token::random().text();
    let numbers = [greeting.number.as_str(), own.as_str()];
    line.until(Instant::now() + HANDSHAKE_LIMIT);
    line.write(&Introduction { proof: token.proof("worker", numbers), number: own.clone(), hello })?;
    let foreign = format!("whoever listens there belongs to another job, or holds another {TOKEN_VARIABLE}");
    let welcome: Welcome = line.read().map_err(|_| stranger(&foreign))?;
    if welcome.proof != token.proof("rank 0", numbers) {
        return Err(stranger(&foreign));
    }
    if let Some(why) = welcome.refused {
        return Ok(Err(why));
    }
    let mut best: Option<(Seconds, Seconds)> = None;
    for _ in 0..CLOCK_TRIPS {
        let sent = Clock::monotonic();
        line.write(&ClockTrip { now_s: sent })?;
        let there: ClockTrip = line.read()?;
        let back = Clock::monotonic();
        let middle = Seconds((sent.0 + back.0) / 2.0);
        if best.is_none_or(|(trip, _)| back - sent < trip) {
            best = Some((back - sent, middle - there.now_s));
        }
    }
    Ok(Ok(Met { line, ahead: best.map_or(Seconds(0.0), |(_, ahead)| ahead) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_names_its_place_as_one_writes_an_address() {
        let at =
            |host: &str, ports: &[u16]| Invitation { host: host.into(), ports: ports.into(), token: String::new() };
        assert_eq!(at("fe80::1%eth0", &[7]).place(), "[fe80::1%eth0]:7");
        assert_eq!(at("node7", &[7, 8, 9]).place(), "node7:7-9");
    }

    #[test]
    fn a_token_depends_on_job_and_secret_and_a_proof_on_everything() {
        let token = Token::of_job("a", "");
        assert!(token == Token::of_job("a", ""));
        assert!(token != Token::of_job("b", "") && token != Token::of_job("a", "s") && token != Token::of_job("", "a"));
        let proof = token.proof("worker", ["1", "2"]);
        let others = [token.proof("rank 0", ["1", "2"]), token.proof("worker", ["2", "1"])];
        assert!(!others.contains(&proof) && proof != Token::of_job("b", "").proof("worker", ["1", "2"]));
        assert_eq!(unhex(&token.text()), Some(token.0));
        for wrong in ["", "0", "zz", &"0".repeat(63), &"0".repeat(66)] {
            assert_eq!(unhex(wrong), None);
        }
    }
}
