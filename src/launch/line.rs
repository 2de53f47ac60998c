//! One connection between rank 0 and a worker: lines of JSON over TCP, bounded in length and, until both sides know each
//! other, in time. Later it ends by itself once the other host answers nothing.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// No line is longer: the largest holds a plan's share and a finding.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// No line of a handshake is longer: the largest is a worker's introduction, some 10 KiB with cores and flags.
pub(super) const HANDSHAKE_BYTES_MAX: u64 = 1 << 16;

/// A peer that takes nothing for so long is given up: what it is told is short.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

/// A host whose kernel has acknowledged nothing for so long is gone: switched off, or its network is.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);

/// After so long without traffic the kernel asks the other side's whether it is there, and as often again.
const ASK_AFTER: Duration = Duration::from_secs(3);

/// Reads that end at a deadline, however little the other side says at a time.
#[derive(Debug)]
struct Timed {
    stream: TcpStream,
    deadline: Option<Instant>,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
        }
        self.stream.read(buffer)
    }
}

/// One side of a connection between rank 0 and a worker.
#[derive(Debug)]
pub(super) struct Line {
    reader: BufReader<Timed>,
    writer: TcpStream,
}

impl Line {
    /// A connection of which all reads end at `deadline`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn of(stream: TcpStream, deadline: Instant) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_LIMIT))?;
        let silence_ms = u32::try_from(SILENCE_LIMIT.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(&stream, silence_ms)?;
        sockopt::set_tcp_keepidle(&stream, ASK_AFTER)?;
        sockopt::set_tcp_keepintvl(&stream, ASK_AFTER)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        let reader = Timed { stream: stream.try_clone()?, deadline: Some(deadline) };
        Ok(Self { reader: BufReader::new(reader), writer: stream })
    }

    /// Moves the deadline.
    pub(super) fn until(&mut self, deadline: Instant) {
        self.reader.get_mut().deadline = Some(deadline);
    }

    /// Takes it apart; reads no longer end by themselves, so that a thread can wait for them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn split(mut self) -> io::Result<(Lines, Speech)> {
        self.reader.get_mut().deadline = None;
        self.writer.set_read_timeout(None)?;
        Ok((Lines(self.reader), Speech(self.writer)))
    }

    /// The next line of a handshake.
    ///
    /// # Errors
    /// It did not come in time, is too long, or is something else.
    pub(super) fn read<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        read(&mut self.reader, HANDSHAKE_BYTES_MAX)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Says one line.
    ///
    /// # Errors
    /// The other side does not take it.
    pub(super) fn write(&mut self, value: &impl Serialize) -> io::Result<()> {
        write(&mut self.writer, value)
    }
}

/// What comes in.
#[derive(Debug)]
pub(super) struct Lines(BufReader<Timed>);

impl Lines {
    /// The next line; none at the end.
    ///
    /// # Errors
    /// The connection broke, or what came is no such line.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        read(&mut self.0, LINE_BYTES_MAX)
    }
}

/// What goes out. Dropping it ends the connection for both sides.
#[derive(Debug)]
pub(super) struct Speech(TcpStream);

impl Speech {
    /// Says one line. Who does not take it within a moment is given up.
    ///
    /// # Errors
    /// The other side is gone or takes nothing.
    pub(super) fn say(&mut self, value: &impl Serialize) -> io::Result<()> {
        write(&mut self.0, value).inspect_err(|_| drop(self.0.shutdown(Shutdown::Both)))
    }
}

impl Drop for Speech {
    fn drop(&mut self) {
        // a thread that reads from the same connection must not outlive it
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

fn read<T: DeserializeOwned>(reader: &mut impl BufRead, bytes_max: u64) -> io::Result<Option<T>> {
    let mut line = String::new();
    let read = reader.by_ref().take(bytes_max).read_line(&mut line)?;
    if read > 0 && !line.ends_with('\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without end"));
    }
    if read == 0 { Ok(None) } else { Ok(Some(serde_json::from_str(&line)?)) }
}

fn write(writer: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    writer.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// Both ends of a connection.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn a_byte_at_a_time_holds_a_handshake_no_longer_than_its_deadline() {
        let (near, mut far) = pair();
        let drips = thread::spawn(move || {
            while far.write_all(b" ").is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
        let begun = Instant::now();
        let mut line = Line::of(near, begun + Duration::from_millis(300)).unwrap();
        let error = line.read::<u32>().unwrap_err();
        assert!([io::ErrorKind::TimedOut, io::ErrorKind::WouldBlock].contains(&error.kind()), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
        drop(line);
        drips.join().unwrap();
    }

    #[test]
    fn a_stranger_can_say_less_than_a_worker() {
        let (long, soon) = ("x".repeat(1 << 17), Instant::now() + Duration::from_secs(20));
        let (near, far) = pair();
        let (mut line, mut other) = (Line::of(near, soon).unwrap(), Line::of(far, soon).unwrap());
        thread::scope(|scope| {
            scope.spawn(|| drop(other.write(&long)));
            assert_eq!(line.read::<String>().unwrap_err().kind(), io::ErrorKind::InvalidData);
            drop(line);
        });
        let (near, far) = pair();
        let (mut lines, _speech) = Line::of(near, Instant::now()).unwrap().split().unwrap();
        let (_lines, mut speech) = Line::of(far, Instant::now()).unwrap().split().unwrap();
        thread::scope(|scope| {
            let said = scope.spawn(move || lines.next::<String>());
            speech.say(&long).unwrap();
            assert_eq!(said.join().unwrap().unwrap().unwrap(), long);
        });
    }
}
