//! The machine at hand.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use crate::device::cuda::{CudaError, library_version, may_reach};
use crate::device::{Nvml, PeerFact};
use crate::topology::{CpuSet, Missing, PciAddress, Phase, Reading, Why};

use super::config::{self, ConfigSpace};
use super::memory;
use super::{Answer, AskError, CgroupFile, HostFact, Machine, Question, Value};

/// Files of sysfs are at most a page; `meminfo` and `os-release` a few KiB.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// How much of a longer file [`Question::Start`] tells.
const START_BYTES: u64 = 4 << 10;
/// More names than any folder of sysfs that is asked for.
const NAMES_MAX: usize = 16_384;
/// NVML takes seconds where it must wake eight GPUs without persistence. Longer is a driver that hangs.
const NVML_WAIT: Duration = Duration::from_secs(60);
/// Where questions may lead.
const ROOTS: [&str; 6] = ["/sys/", "/proc/", "/run/", "/etc/os-release", "/etc/nccl.conf", "/.dockerenv"];

/// The machine at hand. It is only read.
#[derive(Debug, Default)]
pub struct Live {
    nvml: OnceLock<Worker>,
}

impl Live {
    /// The machine at hand. Nothing is asked yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Names of this host and of its user, for a [`super::Redactor`].
    #[must_use]
    pub fn private_words() -> Vec<String> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let users = ["USER", "LOGNAME", "SUDO_USER"].into_iter().filter_map(|name| std::env::var(name).ok());
        users.chain([host]).collect()
    }

    fn nvml(&self, question: &Question) -> Reading<Value> {
        self.nvml.get_or_init(Worker::start).ask(question)
    }
}

impl Machine for Live {
    fn ask(&self, question: &Question) -> Result<Answer, AskError> {
        let answer = match question {
            Question::File(path) => read(path, FILE_BYTES_MAX).and_then(whole).map(Value::Text),
            Question::Start(path) => read(path, START_BYTES).map(|(text, _)| Value::Text(text)),
            Question::Folder(path) => names(path).map(Value::Names),
            Question::Link(path) => target(path).map(Value::Text),
            Question::Exists(path) => exists(path).map(Value::Text),
            Question::Cgroup { file, up } => cgroup(*file, *up).map(Value::Text),
            Question::Host(fact) => host(*fact).map(Value::Text),
            Question::Config(address) => configuration(*address).map(Value::Text),
            Question::Library(_) | Question::Driver(_) | Question::Gpu { .. } | Question::Peer { .. } => {
                self.nvml(question)
            }
        };
        Ok(Answer { phase: Phase::AtRest, answer })
    }
}

/// What an error of the file system means for a fact.
fn unread(path: &str, error: &io::Error) -> Missing {
    let why = match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Why::Absent,
        ErrorKind::PermissionDenied => Why::Denied,
        // Attributes of sysfs that a device lacks answer EINVAL, ENODEV, ENXIO or EOPNOTSUPP.
        ErrorKind::InvalidInput | ErrorKind::Unsupported => Why::Unsupported,
        _ => match error.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => Why::Unsupported,
            _ => Why::Garbled,
        },
    };
    Missing::new(why, if why == Why::Absent { path.to_owned() } else { format!("{path}: {error}") })
}

/// Refuses to leave the folders that describe a machine.
fn allowed(path: &str) -> Reading<&Path> {
    let inside = ROOTS.iter().any(|root| path.starts_with(root)) && !path.split('/').any(|part| part == "..");
    match inside {
        true => Ok(Path::new(path)),
        false => Err(Missing::new(Why::Unsupported, format!("{path} is outside of what rigscale reads"))),
    }
}

/// At most `most` bytes of a file.
fn bytes(path: &str, most: u64) -> Reading<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(allowed(path)?).and_then(|file| file.take(most).read_to_end(&mut bytes));
    read.map_err(|error| unread(path, &error))?;
    Ok(bytes)
}

/// As much of configuration space as the kernel shows to this user.
fn configuration(address: PciAddress) -> Reading<String> {
    let bytes = bytes(&format!("/sys/bus/pci/devices/{address}/config"), config::BYTES_MAX as u64)?;
    Ok(ConfigSpace::new(bytes).to_string())
}

/// At most `most` bytes of a file as text, and whether that was all.
fn read(path: &str, most: u64) -> Reading<(String, bool)> {
    let mut bytes = bytes(path, most + 1)?;
    let all = bytes.len() as u64 <= most;
    bytes.truncate(most as usize);
    match String::from_utf8(bytes) {
        Ok(text) => Ok((text, all)),
        Err(_) => Err(Missing::new(Why::Garbled, format!("{path} is no UTF-8"))),
    }
}

fn whole((text, all): (String, bool)) -> Reading<String> {
    match all {
        true => Ok(text),
        false => Err(Missing::new(Why::Garbled, format!("longer than {FILE_BYTES_MAX} bytes"))),
    }
}

fn names(path: &str) -> Reading<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(allowed(path)?).map_err(|error| unread(path, &error))?.take(NAMES_MAX) {
        let entry = entry.map_err(|error| unread(path, &error))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn target(path: &str) -> Reading<String> {
    let target = fs::read_link(allowed(path)?).map_err(|error| unread(path, &error))?;
    Ok(target.to_string_lossy().into_owned())
}

fn exists(path: &str) -> Reading<String> {
    fs::symlink_metadata(allowed(path)?).map(|_| "true".to_owned()).map_err(|error| unread(path, &error))
}

fn host(fact: HostFact) -> Reading<String> {
    let failed = |call: &str, error: rustix::io::Errno| Missing::new(Why::Garbled, format!("{call}: {error}"));
    match fact {
        HostFact::AllowedCpus => {
            let set = rustix::thread::sched_getaffinity(None).map_err(|error| failed("sched_getaffinity", error))?;
            let most = rustix::thread::CpuSet::MAX_CPU;
            Ok((0..most).filter(|cpu| set.is_set(*cpu)).collect::<CpuSet>().to_string())
        }
        HostFact::ShmBytes => {
            let error = |error: rustix::io::Errno| unread("/dev/shm", &io::Error::from(error));
            let status = rustix::fs::statvfs("/dev/shm").map_err(error)?;
            Ok(status.f_blocks.saturating_mul(status.f_frsize).to_string())
        }
        HostFact::MemlockBytes => {
            Ok(getrlimit(Resource::Memlock).current.map_or("unlimited".to_owned(), |bytes| bytes.to_string()))
        }
        HostFact::Root => Ok(rustix::process::geteuid().is_root().to_string()),
        HostFact::MemorySlots => memory::slots(),
        HostFact::NcclEnvironment => Ok(nccl_environment()),
        HostFact::NcclUserConf => nccl_user_conf(),
    }
}

/// `NCCL_*` of this process, sorted.
fn nccl_environment() -> String {
    let named = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with("NCCL_"))?;
        Some(format!("{name}={}", value.to_string_lossy().lines().next().unwrap_or_default()))
    });
    let mut lines: Vec<String> = named.collect();
    lines.sort();
    lines.join("\n")
}

/// The file that NCCL reads before `/etc/nccl.conf` (NCCL 2.30, `src/misc/param.cc`).
fn nccl_user_conf() -> Reading<String> {
    let chosen = std::env::var_os("NCCL_CONF_FILE").filter(|name| !name.is_empty()).map(PathBuf::from);
    let at_home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".nccl.conf"));
    let path = chosen.or_else(at_home).ok_or_else(|| Missing::new(Why::Absent, "no NCCL_CONF_FILE and no home"))?;
    // Where it lies names a user: the reason tells the file's kind alone.
    let anonymous = |missing: Missing| Missing::new(missing.why, "NCCL's file of this user");
    let mut bytes = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|error| anonymous(unread("", &error)))?;
    String::from_utf8(bytes).map_err(|_| Missing::new(Why::Garbled, "NCCL's file of this user is no UTF-8"))
}

/// A file of the control group `up` levels above this process.
fn cgroup(file: CgroupFile, up: u8) -> Reading<String> {
    let (groups, _) = read("/proc/self/cgroup", FILE_BYTES_MAX)?;
    let second = file == CgroupFile::CpuMax;
    let of_interest = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        let ours = if second { controllers.is_empty() } else { controllers.split(',').any(|one| one == "cpu") };
        parts.next().filter(|_| ours).map(str::to_owned)
    };
    let hidden = |what: &str| Missing::new(Why::Unsupported, format!("{}: {what}", file.name()));
    let group = groups.lines().find_map(of_interest).ok_or_else(|| hidden("no control group of that version"))?;
    let mounts: &[&str] = match second {
        true => &["/sys/fs/cgroup/unified", "/sys/fs/cgroup"],
        false => &["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"],
    };
    let root = mounts.iter().find(|root| Path::new(root).join("cgroup.procs").exists());
    let root = *root.ok_or_else(|| hidden("control groups are not mounted"))?;
    // A container may show its own group as the root while the path still counts from the host's.
    let inside: Vec<&str> = match Path::new(&format!("{root}{group}")).is_dir() {
        true => group.split('/').filter(|part| !part.is_empty()).collect(),
        false => Vec::new(),
    };
    let levels = inside.len().checked_sub(usize::from(up)).ok_or_else(|| hidden("above the root"))?;
    let path = [&[root], &inside[..levels], &[file.name()]].concat().join("/");
    // Where the group lies names users and services: the reason tells the file alone.
    let anonymous = |missing: Missing| Missing::new(missing.why, file.name());
    read(&path, FILE_BYTES_MAX).and_then(whole).map_err(anonymous)
}

/// A thread that talks to NVML, so that a driver that hangs costs [`NVML_WAIT`] and no more.
#[derive(Debug)]
struct Worker {
    questions: SyncSender<(Question, Sender<Reading<Value>>)>,
    stuck: OnceLock<Missing>,
}

impl Worker {
    fn start() -> Self {
        let (questions, asked) = sync_channel(1);
        // A thread that cannot start drops `asked`, and every question is answered as unanswered.
        let _detached = thread::Builder::new().name("nvml".into()).spawn(move || serve(&asked));
        Self { questions, stuck: OnceLock::new() }
    }

    fn ask(&self, question: &Question) -> Reading<Value> {
        if let Some(missing) = self.stuck.get() {
            return Err(missing.clone());
        }
        let (reply, answer) = channel();
        let sent = self.questions.send((question.clone(), reply)).is_ok();
        let answer = if sent { answer.recv_timeout(NVML_WAIT).ok() } else { None };
        answer.unwrap_or_else(|| {
            let silent = format!("NVML gave no answer within {} s", NVML_WAIT.as_secs());
            Err(self.stuck.get_or_init(|| Missing::new(Why::Garbled, silent)).clone())
        })
    }
}

/// Whether CUDA lets one GPU reach the other.
fn cuda_peer(from: PciAddress, to: PciAddress) -> Reading<String> {
    may_reach(from, to).map(|granted| granted.to_string()).map_err(|error| {
        let why = match error {
            CudaError::Library(_) | CudaError::NoGpu => Why::Absent,
            _ => Why::Garbled,
        };
        Missing::new(why, format!("CUDA: {}", error.to_string().split(" in ").next().unwrap_or_default()))
    })
}

/// Answers questions about the NVIDIA driver until no one can ask any more.
fn serve(asked: &Receiver<(Question, Sender<Reading<Value>>)>) {
    let nvml = Nvml::open();
    while let Ok((question, reply)) = asked.recv() {
        // CUDA may hang where NVML does, and a library that is loaded may run anything.
        let other = match &question {
            Question::Library(which) => Some(library_version(*which)),
            Question::Peer { from, to, fact: PeerFact::Cuda } => Some(cuda_peer(*from, *to)),
            _ => None,
        };
        if let Some(answer) = other {
            let _gone = reply.send(answer.map(Value::Text));
            continue;
        }
        let answer = nvml.as_ref().map_err(Clone::clone).and_then(|nvml| match question {
            Question::Driver(fact) => nvml.driver(fact),
            Question::Gpu { at, fact } => nvml.gpu(at, fact),
            Question::Peer { from, to, fact } => nvml.peer(from, to, fact),
            other => Err(Missing::new(Why::Unsupported, format!("{other} is no question for NVML"))),
        });
        // Whoever asked may have stopped waiting.
        let _ = reply.send(answer.map(Value::Text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_describes_the_machine_is_read() {
        let live = Live::new();
        for path in ["/etc/passwd", "/sys/../etc/passwd", "/home/x", "proc/cmdline", "/proc/../../x"] {
            let answer = live.ask(&Question::File(path.into())).unwrap().answer;
            assert_eq!(answer.unwrap_err().why, Why::Unsupported, "{path}");
        }
        let absent = live.ask(&Question::File("/sys/no/such/file".into())).unwrap().answer;
        assert_eq!(absent.unwrap_err(), Missing::new(Why::Absent, "/sys/no/such/file"));
    }

    #[test]
    fn this_host_answers() {
        let live = Live::new();
        let text = |question| match live.ask(&question).unwrap().answer {
            Ok(Value::Text(text)) => text,
            other => unreachable!("{other:?}"),
        };
        assert!(!text(Question::Host(HostFact::AllowedCpus)).parse::<CpuSet>().unwrap().is_empty());
        assert!(text(Question::Start("/proc/cpuinfo".into())).len() <= START_BYTES as usize);
        assert!(!text(Question::File("/proc/meminfo".into())).is_empty());
    }
}
