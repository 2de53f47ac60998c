//! A rank's place in a job that another launcher started, read from the environment that the launcher gave it.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use thiserror::Error;

/// More ranks than this are a mistake in the environment, not a job.
const WORLD_MAX: usize = 1024;

/// Ports above the job's own that are tried: other services of the host may hold some.
const PORTS: u16 = 8;

/// Where a port must be made up, it is one of these: below the range from which Linux gives out ports (32768 on).
const MADE_UP_PORTS: (u16, u16) = (20_000, 12_000);

/// Who started the processes of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobLauncher {
    /// `torchrun`, or anything that sets its variables.
    Torchrun,
    /// `srun`.
    Slurm,
    /// `mpirun` of Open MPI.
    OpenMpi,
    /// A process manager that speaks PMI: `mpiexec` of MPICH and its relatives.
    Pmi,
}

impl JobLauncher {
    // `srun --mpi=pmi2` sets both its own variables and those of PMI, without a number on the host among the latter
    const ALL: [Self; 4] = [Self::Torchrun, Self::OpenMpi, Self::Slurm, Self::Pmi];

    /// The variables of rank and number of ranks, each with its place among the launcher's words.
    fn variables(self) -> [&'static str; 2] {
        match self {
            Self::Torchrun => ["RANK", "WORLD_SIZE"],
            Self::Slurm => ["SLURM_PROCID", "SLURM_NTASKS"],
            Self::OpenMpi => ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
            Self::Pmi => ["PMI_RANK", "PMI_SIZE"],
        }
    }

    /// The variable that numbers the ranks of one host.
    fn local_rank(self) -> &'static str {
        match self {
            Self::Torchrun => "LOCAL_RANK",
            Self::Slurm => "SLURM_LOCALID",
            Self::OpenMpi => "OMPI_COMM_WORLD_LOCAL_RANK",
            Self::Pmi => "MPI_LOCALRANKID",
        }
    }
}

impl fmt::Display for JobLauncher {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Torchrun => "torchrun",
            Self::Slurm => "Slurm",
            Self::OpenMpi => "Open MPI",
            Self::Pmi => "PMI",
        })
    }
}

/// Why the environment gives no place.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlaceError {
    /// No launcher has set anything.
    #[error(
        "no launcher has started this process: a worker needs the variables of torchrun (RANK, WORLD_SIZE, LOCAL_RANK), \
         srun (SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID), mpirun (OMPI_COMM_WORLD_RANK …) or PMI (PMI_RANK …); \
         `rigscale train` starts its ranks itself"
    )]
    NoLauncher,
    /// A variable is missing beside others of its launcher.
    #[error("{launcher} has set {given} but not {name}, without which this process does not know its place")]
    Unset {
        /// Whose variables.
        launcher: JobLauncher,
        /// What is there.
        given: &'static str,
        /// What is not.
        name: &'static str,
    },
    /// A variable holds something else than it should.
    #[error("{name}={value:?} should be {wanted}")]
    Value {
        /// Which.
        name: String,
        /// As found.
        value: String,
        /// What would be right.
        wanted: String,
    },
    /// Two launchers give different places.
    #[error(
        "{first} says that this is rank {first_place}, {second} says rank {second_place}: unset the variables of the one \
         that did not start this process"
    )]
    Contradiction {
        /// One of them.
        first: JobLauncher,
        /// `1 of 4`.
        first_place: String,
        /// The other.
        second: JobLauncher,
        /// `0 of 2`.
        second_place: String,
    },
    /// Ranks are spread over hosts, and nobody says where they meet.
    #[error(
        "{launcher} does not say where ranks of several hosts meet: name an address of rank 0's host, --meet HOST:PORT"
    )]
    NoAddress {
        /// Who started them.
        launcher: JobLauncher,
    },
    /// The user names a host to meet at, and nobody a port.
    #[error(
        "--meet {host} names no port, on which ranks of several hosts meet where MPI does not carry one: --meet {host}:PORT"
    )]
    NoPort {
        /// As named.
        host: String,
    },
}

/// Where ranks of several hosts meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeetingPlace {
    /// Name or address of a host of the job: the interface on which rank 0 listens.
    pub host: String,
    /// Ports, of which rank 0 takes the first that is free; 0 lets the kernel choose.
    pub ports: Vec<u16>,
}

/// A rank's place in its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobPlace {
    /// Who started it.
    pub launcher: JobLauncher,
    /// This rank, from 0.
    pub rank: usize,
    /// Ranks of the job.
    pub world: usize,
    /// Its number among the ranks of its host, from 0.
    pub local_rank: usize,
    /// Whether all ranks are on one host, as far as the launcher says.
    pub one_host: bool,
    /// What tells this job from others of the same user, where the launcher has a name for it.
    pub job: String,
    /// Where the ranks meet, where it was named.
    pub meeting: Option<MeetingPlace>,
    /// Whether MPI can connect the ranks: it was their launcher, or sits in it.
    pub mpi: bool,
}

/// The environment: a variable's value by its name. What is empty is taken as not set.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl JobPlace {
    /// Reads the place from the environment; `meet` is what the user named as meeting place, `HOST:PORT` or `HOST`.
    ///
    /// Where several launchers have set variables they must agree, but for Slurm, with its PMI, below another: `srun` starts
    /// agents of torchrun, Open MPI and MPICH, which inherit its variables and start the ranks.
    ///
    /// # Errors
    /// No launcher, two that contradict each other, or a value that cannot be.
    pub fn read(environment: Environment, meet: Option<&str>) -> Result<Self, PlaceError> {
        let get = |name: &str| environment(name).filter(|value| !value.is_empty());
        let mut found = Vec::new();
        for launcher in JobLauncher::ALL {
            if let Some(place) = numbers(launcher, &get)? {
                found.push((launcher, place));
            }
        }
        let agent = get("TORCHELASTIC_RUN_ID").is_some() || get("OMPI_COMM_WORLD_RANK").is_some();
        let below: &[JobLauncher] = match found.len() {
            2.. if agent => &[JobLauncher::Slurm, JobLauncher::Pmi],
            // Slurm's own PMI does not set it
            2.. if get(JobLauncher::Pmi.local_rank()).is_some() => &[JobLauncher::Slurm],
            _ => &[],
        };
        found.retain(|(launcher, _)| !below.contains(launcher));
        let Some(&(launcher, (rank, world))) = found.first() else { return Err(PlaceError::NoLauncher) };
        if let Some((second, other)) = found.iter().find(|(_, other)| *other != (rank, world)) {
            return Err(PlaceError::Contradiction {
                first: launcher,
                first_place: format!("{rank} of {world}"),
                second: *second,
                second_place: format!("{} of {}", other.0, other.1),
            });
        }
        let local = launcher.local_rank();
        let given = launcher.variables()[0];
        let local_rank = number(local, &get, 0..world)?.ok_or(PlaceError::Unset { launcher, given, name: local })?;
        let one_host = one_host(launcher, world, &get)?;
        // below torchrun they are those of its agent
        let mpi = launcher != JobLauncher::Torchrun
            && ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"]
                .iter()
                .any(|name| get(name).is_some_and(|value| value.trim().parse() == Ok(rank)));
        let meeting = match meet {
            Some(meet) => Some(meeting_place("--meet", meet)?),
            None if one_host => None,
            None => named_by(launcher, &get)?,
        };
        Ok(Self { launcher, rank, world, local_rank, one_host, job: job(launcher, &get), meeting, mpi })
    }
}

/// Rank and number of ranks, if this launcher has set them.
fn numbers(launcher: JobLauncher, get: Environment) -> Result<Option<(usize, usize)>, PlaceError> {
    let [rank, world] = launcher.variables();
    match (get(rank), get(world)) {
        (None, None) => Ok(None),
        // both names are common words, or set outside a step: one alone is no launcher
        (None, Some(_)) => Ok(None),
        (Some(_), None) => Err(PlaceError::Unset { launcher, given: rank, name: world }),
        (Some(_), Some(_)) => {
            let ranks = number(world, get, 1..WORLD_MAX + 1)?.unwrap_or(1);
            Ok(number(rank, get, 0..ranks)?.map(|rank| (rank, ranks)))
        }
    }
}

/// A whole number in a range; none where the variable is not set.
fn number(name: &str, get: Environment, range: std::ops::Range<usize>) -> Result<Option<usize>, PlaceError> {
    let Some(value) = get(name) else { return Ok(None) };
    match value.trim().parse() {
        Ok(number) if range.contains(&number) => Ok(Some(number)),
        _ => {
            let wanted = format!("a number from {} to {}", range.start, range.end - 1);
            Err(PlaceError::Value { name: name.into(), value, wanted })
        }
    }
}

/// Whether all ranks are on one host. What the launcher does not say is taken from the meeting place: the loopback
/// interface leads nowhere else.
fn one_host(launcher: JobLauncher, world: usize, get: Environment) -> Result<bool, PlaceError> {
    if world == 1 {
        return Ok(true);
    }
    let all_local = |name| number(name, get, 1..world + 1).map(|local| local.map(|local| local == world));
    let said = match launcher {
        JobLauncher::Torchrun => all_local("LOCAL_WORLD_SIZE")?
            .or_else(|| get("MASTER_ADDR").map(|host| ["localhost", "127.0.0.1", "::1"].contains(&host.as_str()))),
        JobLauncher::OpenMpi => all_local("OMPI_COMM_WORLD_LOCAL_SIZE")?,
        JobLauncher::Pmi => all_local("MPI_LOCALNRANKS")?,
        JobLauncher::Slurm => {
            let nodes = ["SLURM_STEP_NUM_NODES", "SLURM_NNODES"].into_iter().find(|name| get(name).is_some());
            nodes.map(|name| number(name, get, 1..WORLD_MAX + 1)).transpose()?.flatten().map(|nodes| nodes == 1)
        }
    };
    Ok(said.unwrap_or(false))
}

/// A host at which ranks can meet: not the address that stands for every interface.
fn one_interface(name: &str, host: String) -> Result<String, PlaceError> {
    match host.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() => {
            let wanted = "one address of rank 0's host; this one stands for all of its interfaces".into();
            Err(PlaceError::Value { name: name.into(), value: host, wanted })
        }
        _ => Ok(host),
    }
}

/// The meeting place that the launcher's variables give.
fn named_by(launcher: JobLauncher, get: Environment) -> Result<Option<MeetingPlace>, PlaceError> {
    match launcher {
        JobLauncher::Torchrun => {
            let Some(host) = get("MASTER_ADDR") else { return Ok(None) };
            let host = one_interface("MASTER_ADDR", host)?;
            let Some(port) = number("MASTER_PORT", get, 1..65_536)? else {
                return Err(PlaceError::Unset { launcher, given: "MASTER_ADDR", name: "MASTER_PORT" });
            };
            // MASTER_PORT itself is the agent's, or of a store that others expect there
            let port = u16::try_from(port).unwrap_or(u16::MAX).min(u16::MAX - PORTS);
            Ok(Some(MeetingPlace { host, ports: (port + 1..=port + PORTS).collect() }))
        }
        JobLauncher::Slurm => {
            let lists = ["SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"];
            let Some((name, list)) = lists.iter().find_map(|name| Some((*name, get(name)?))) else { return Ok(None) };
            let host = first_host(&list).ok_or_else(|| PlaceError::Value {
                name: name.into(),
                value: list.clone(),
                wanted: "a list of hosts, as node[01-04,07]".into(),
            })?;
            let (first, count) = MADE_UP_PORTS;
            let job = number("SLURM_JOB_ID", get, 0..usize::MAX)?.unwrap_or(0);
            let step = number("SLURM_STEP_ID", get, 0..usize::MAX)?.unwrap_or(0);
            let spread =
                job.wrapping_mul(31).wrapping_add(step).wrapping_mul(usize::from(PORTS)) % usize::from(count - PORTS);
            let port = first + u16::try_from(spread).unwrap_or(0);
            Ok(Some(MeetingPlace { host, ports: (port..port + PORTS).collect() }))
        }
        // what they set is theirs to read
        JobLauncher::OpenMpi | JobLauncher::Pmi => Ok(None),
    }
}

/// `HOST:PORT`, `[V6]:PORT` or `HOST`.
fn meeting_place(name: &str, text: &str) -> Result<MeetingPlace, PlaceError> {
    let wrong = || PlaceError::Value { name: name.into(), value: text.into(), wanted: "HOST:PORT or HOST".into() };
    let (host, port) = match (text.strip_prefix('['), text.rsplit_once(':')) {
        (Some(inner), _) => {
            let (host, rest) = inner.split_once(']').ok_or_else(wrong)?;
            (host, rest.strip_prefix(':').or(rest.is_empty().then_some("0")).ok_or_else(wrong)?)
        }
        (None, Some((host, port))) if !host.contains(':') => (host, port),
        // an IPv6 address without brackets, or a host alone
        (None, _) => (text, "0"),
    };
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-._:%".contains(letter);
    if host.is_empty() || !host.chars().all(plain) {
        return Err(wrong());
    }
    Ok(MeetingPlace { host: one_interface(name, host.into())?, ports: vec![port] })
}

/// The first host of Slurm's list: `node07`, `node[03-04,09],login`, `r[1-2]n[1-4]`.
fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim();
    loop {
        let end = rest.find(['[', ',']).unwrap_or(rest.len());
        host.push_str(&rest[..end]);
        match rest[end..].strip_prefix('[') {
            Some(inside) => {
                let (numbers, after) = inside.split_once(']')?;
                host.push_str(numbers.split(['-', ',']).next()?);
                rest = after;
            }
            None => break,
        }
    }
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    (!host.is_empty() && host.chars().all(plain)).then_some(host)
}

/// What tells the job from others, where the launcher has a name for it.
fn job(launcher: JobLauncher, get: Environment) -> String {
    let names: &[&str] = match launcher {
        JobLauncher::Torchrun => &["TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"],
        JobLauncher::Slurm => &["SLURM_JOB_ID", "SLURM_STEP_ID"],
        JobLauncher::OpenMpi => &["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"],
        JobLauncher::Pmi => &["PMIX_NAMESPACE"],
    };
    let words: Vec<String> = names.iter().filter_map(|name| get(name)).collect();
    format!("{launcher} {}", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn place(variables: &str, meet: Option<&str>) -> Result<JobPlace, PlaceError> {
        let all: BTreeMap<&str, &str> = variables.split_whitespace().filter_map(|pair| pair.split_once('=')).collect();
        JobPlace::read(&|name| all.get(name).map(|value| (*value).to_owned()), meet)
    }

    const TORCHRUN: &str = "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=node1 MASTER_PORT=29500 \
                            TORCHELASTIC_RUN_ID=none";
    const SLURM: &str = "SLURM_PROCID=2 SLURM_NTASKS=4 SLURM_LOCALID=0 SLURM_NNODES=2 SLURM_STEP_NODELIST=gpu[03-04] \
                         SLURM_JOB_ID=4711 SLURM_STEP_ID=0";
    const OPEN_MPI: &str = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 \
                            OMPI_COMM_WORLD_LOCAL_SIZE=2 PMIX_NAMESPACE=12";

    #[test]
    fn torchrun_keeps_its_port_and_ranks_meet_above_it() {
        let place = place(TORCHRUN, None).unwrap();
        assert_eq!((place.launcher, place.rank, place.world, place.local_rank), (JobLauncher::Torchrun, 3, 4, 1));
        assert!(!place.one_host && !place.mpi);
        assert_eq!(place.meeting.unwrap(), MeetingPlace { host: "node1".into(), ports: (29_501..=29_508).collect() });
        let hand_set = "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=65535";
        let alone = self::place(hand_set, None).unwrap();
        assert!(alone.one_host && alone.meeting.is_none(), "one host needs no address");
    }

    #[test]
    fn slurm_sets_no_port_and_the_first_host_of_the_step_is_met() {
        let place = place(SLURM, None).unwrap();
        assert_eq!((place.launcher, place.rank, place.world, place.local_rank), (JobLauncher::Slurm, 2, 4, 0));
        let meeting = place.meeting.unwrap();
        assert_eq!((meeting.host.as_str(), meeting.ports.len()), ("gpu03", 8));
        assert!(meeting.ports.iter().all(|port| (20_000..32_000).contains(port)), "{:?}", meeting.ports);
        let other = self::place(&SLURM.replace("4711", "4712"), None).unwrap().meeting.unwrap();
        assert!(meeting.ports.iter().all(|port| !other.ports.contains(port)), "jobs after each other do not collide");
        for (list, host) in [("a1", "a1"), ("n[7,9-12],b", "n7"), ("r[1-2]n[004-5]", "r1n004"), ("a,b[1-2]", "a")] {
            assert_eq!(first_host(list).as_deref(), Some(host), "{list}");
        }
        for list in ["", "n[1-2", "[]", "a b", "; rm"] {
            assert_eq!(first_host(list), None, "{list}");
        }
    }

    #[test]
    fn mpirun_on_one_host_needs_nothing_and_on_several_an_address_or_mpi() {
        let place = place(OPEN_MPI, None).unwrap();
        assert_eq!((place.launcher, place.rank, place.world, place.local_rank), (JobLauncher::OpenMpi, 1, 2, 1));
        assert!(place.one_host && place.mpi);
        let several = OPEN_MPI.replace("LOCAL_SIZE=2", "LOCAL_SIZE=1").replace("LOCAL_RANK=1", "LOCAL_RANK=0");
        assert_eq!(self::place(&several, None).unwrap().meeting, None);
        let named = self::place(&several, Some("10.0.0.1:4000")).unwrap().meeting.unwrap();
        assert_eq!((named.host.as_str(), named.ports), ("10.0.0.1", vec![4000]));
        let pmi = "PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2";
        assert_eq!(self::place(pmi, None).unwrap().launcher, JobLauncher::Pmi);
    }

    #[test]
    fn agents_below_slurm_count_and_other_contradictions_are_refused() {
        let below = format!("{SLURM} {OPEN_MPI}");
        assert_eq!(place(&below, None).unwrap().launcher, JobLauncher::OpenMpi);
        assert_eq!(place(&format!("{SLURM} {TORCHRUN}"), None).unwrap().launcher, JobLauncher::Torchrun);
        let by_hand = TORCHRUN.replace("TORCHELASTIC_RUN_ID=none", "");
        let refused = place(&format!("{SLURM} {by_hand}"), None).unwrap_err().to_string();
        assert!(refused.contains("torchrun says that this is rank 3 of 4, Slurm says rank 2 of 4"), "{refused}");
        let refused = place(&format!("{OPEN_MPI} {TORCHRUN}"), None).unwrap_err().to_string();
        assert!(refused.contains("Open MPI says rank 1 of 2"), "{refused}");
    }

    #[test]
    fn pmi_is_slurms_own_or_that_of_a_process_manager_below_it() {
        let own = place(&format!("{SLURM} PMI_RANK=2 PMI_SIZE=4 PMI_ID=2"), None).unwrap();
        assert_eq!((own.launcher, own.mpi, own.local_rank), (JobLauncher::Slurm, true, 0));
        let hydra = "PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2 PMI_ID=1";
        let below = place(&format!("{SLURM} {hydra}"), None).unwrap();
        assert_eq!((below.launcher, below.rank, below.mpi, below.one_host), (JobLauncher::Pmi, 1, true, true));
        assert_eq!(
            below.job,
            place(&hydra.replace("PMI_ID=1", "PMI_ID=0"), None).unwrap().job,
            "one job, whatever the rank"
        );
        let refused = place(&format!("{SLURM} PMI_RANK=1 PMI_SIZE=4"), None).unwrap_err().to_string();
        assert!(refused.contains("Slurm says that this is rank 2 of 4, PMI says rank 1 of 4"), "{refused}");
        let agent = place(&format!("{SLURM} PMI_RANK=2 PMI_SIZE=4 {TORCHRUN}"), None).unwrap();
        assert_eq!((agent.launcher, agent.mpi), (JobLauncher::Torchrun, false));
    }

    #[test]
    fn mpi_connects_ranks_that_it_numbers_as_their_launcher_does() {
        for (variables, mpi) in [
            (format!("{SLURM} PMIX_RANK=2"), true),
            (format!("{SLURM} PMIX_RANK=1"), false),
            (SLURM.to_owned(), false),
            // each rank inherits that of the agent
            (format!("{SLURM} {TORCHRUN} PMIX_RANK=3"), false),
        ] {
            assert_eq!(place(&variables, None).unwrap().mpi, mpi, "{variables}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        assert_eq!(place("WORLD_SIZE=4 SLURM_NTASKS=2", None), Err(PlaceError::NoLauncher));
        for (from, to, name) in [
            ("RANK=3 ", "RANK=4 ", "RANK=\"4\" should be a number from 0 to 3"),
            ("WORLD_SIZE=4", "WORLD_SIZE=many", "WORLD_SIZE=\"many\" should be a number from 1 to 1024"),
            ("WORLD_SIZE=4 ", "WORLD_SIZE= ", "has set RANK but not WORLD_SIZE"),
            ("LOCAL_RANK=1", "LOCAL_RANK=-1", "LOCAL_RANK=\"-1\" should be a number from 0 to 3"),
            ("LOCAL_RANK=1", "X=1", "has set RANK but not LOCAL_RANK"),
            ("MASTER_PORT=29500", "MASTER_PORT=0", "MASTER_PORT=\"0\" should be a number from 1 to 65535"),
            ("MASTER_PORT=29500", "X=1", "has set MASTER_ADDR but not MASTER_PORT"),
            ("LOCAL_WORLD_SIZE=2", "LOCAL_WORLD_SIZE=9", "LOCAL_WORLD_SIZE=\"9\""),
            (
                "MASTER_ADDR=node1",
                "MASTER_ADDR=0.0.0.0",
                "MASTER_ADDR=\"0.0.0.0\" should be one address of rank 0's host",
            ),
        ] {
            let text = place(&TORCHRUN.replacen(from, to, 1), None).unwrap_err().to_string();
            assert!(text.contains(name), "{from} → {to}: {text}");
        }
        for meet in ["", ":1", "0.0.0.0:1", "[::]:1", "host:99999", "host:x", "a b:1", "[::1", "[::1]x", "host:1:2x/"] {
            assert!(matches!(place(TORCHRUN, Some(meet)), Err(PlaceError::Value { .. })), "{meet}");
        }
        for (meet, host, port) in [("[::1]:7", "::1", 7), ("host", "host", 0), ("fe80::1%eth0", "fe80::1%eth0", 0)] {
            let meeting = place(TORCHRUN, Some(meet)).unwrap().meeting.unwrap();
            assert_eq!((meeting.host.as_str(), &meeting.ports[..]), (host, &[port][..]), "{meet}");
        }
    }
}
