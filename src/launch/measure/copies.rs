//! The process that copies: opens every GPU of its task, holds all transfers of a request behind one gate, lets them go at
//! once, and has each destination read its own memory.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::device;
use crate::device::cuda::kernels::{LinkKernels, pattern_word};
use crate::device::cuda::{
    Arena, Cache, CudaError, DeviceBuffer, Element, Event, Events, Gate, Gpu, Nvrtc, Pinned, Stream,
};
use crate::record::{Check, CopyLine, Engine, LatencyLine, LinkLine, Pattern, Place, Spread, TransferRate};
use crate::stats;
use crate::topology::PciAddress;
use crate::units::{Bytes, BytesPerSecond, Seconds};

use super::task::{Copies, GaveUp, Report, Request, Task, say};

/// Copies of one transfer in a repeat, one behind the other: what begins and ends them weighs less then.
const LOOPS: u64 = 4;

/// Streams wait no longer than this for the host to let them go.
const HOLD: Seconds = Seconds(10.0);

/// GPUs take up to a few tenths of a second to raise their clocks and the speed of their link.
const WAKE: Seconds = Seconds(0.5);

/// Words from one link of a chain to the next: 128 bytes, a line of the cache, so that none holds two.
const STRIDE: u32 = 32;

/// Loads of a chain: 2 MiB of it.
const LOADS: u32 = 16_384;

/// What stands at a destination before: no source has this pattern.
const BEFORE: u32 = 0xdead_0001;

/// Pattern of what the host sends; that of a GPU is its place.
const OF_HOST: u32 = 0x4000;

/// Everything on one GPU.
struct Site {
    gpu: Gpu,
    kernels: LinkKernels,
    /// One for each transfer that it asks for at once.
    streams: Vec<Stream>,
    events: Events,
    source: DeviceBuffer,
    /// One for each transfer that ends here at once.
    arrivals: Vec<DeviceBuffer>,
    report: DeviceBuffer,
    told: Pinned<u64>,
    host: Option<HostSide>,
}

/// Pinned memory near a GPU.
struct HostSide {
    source: Pinned<u32>,
    arrival: Pinned<u32>,
}

/// One transfer of a request, with the places of its ends.
#[derive(Debug, Clone, Copy)]
struct Way {
    from: Option<usize>,
    to: Option<usize>,
    /// Whose stream it is on, and which.
    by: (usize, usize),
    /// Which of the destination's arrivals.
    slot: usize,
}

impl Way {
    /// The two GPUs, if it leads from one to another.
    fn ends(&self) -> Option<(usize, usize)> {
        self.from.zip(self.to).filter(|(from, to)| from != to)
    }
}

struct Bench<'a> {
    copies: &'a Copies,
    words: usize,
    sites: Vec<Site>,
    gate: Gate,
    granted: BTreeSet<(usize, usize)>,
}

/// Makes the copies of a task and says what was measured.
pub(super) fn make(task: &Task, copies: &Copies) -> Result<(), GaveUp> {
    device::end_with_parent(task.launcher)?;
    let mut bench = Bench::open(copies)?;
    for request in &copies.requests {
        let line = match request {
            Request::Copy { pattern, engine, transfers } => {
                bench.copy(*pattern, *engine, transfers)?.map(LinkLine::Copy)
            }
            Request::Latency { of, by } => bench.latency(*of, *by)?.map(LinkLine::Latency),
            Request::Load { transfers, lasts } => {
                bench.load(transfers, *lasts)?;
                None
            }
        };
        say(&line.map_or(Report::Busy, |of| Report::Measured { of }));
    }
    Ok(())
}

impl<'a> Bench<'a> {
    fn open(copies: &'a Copies) -> Result<Self, GaveUp> {
        // whole vectors of 16 bytes
        let words = (copies.bytes.0 / 16 * 4).max(u64::from(LOADS * STRIDE)) as usize;
        let mut cache = Cache::of_user();
        let mut sites = Vec::new();
        for (address, cpus) in &copies.sites {
            // memory that is pinned now lies on the node of these CPUs
            device::pin_to(cpus)?;
            sites.push(Site::open(*address, copies, words, &mut cache)?);
            say(&Report::Busy);
        }
        let first = sites.first().ok_or(CudaError::NoGpu)?;
        let gate = Gate::new(&first.gpu)?;
        let mut granted = BTreeSet::new();
        for from in 0..sites.len() {
            for to in (0..sites.len()).filter(|to| *to != from) {
                let (one, other) = (&sites[from].gpu, &sites[to].gpu);
                if one.may_access(other)? {
                    one.access(other)?;
                    granted.insert((from, to));
                }
            }
        }
        for (index, site) in sites.iter_mut().enumerate() {
            site.gpu.activate()?;
            site.paint_sources(index as u32)?;
        }
        Ok(Self { copies, words, sites, gate, granted })
    }

    fn place(&self, place: Place) -> Option<usize> {
        let Place::Gpu(address) = place else { return None };
        self.copies.sites.iter().position(|(site, _)| *site == address)
    }

    /// The transfers of a request, each with a stream of its own.
    fn ways(&self, engine: Engine, transfers: &[(Place, Place)]) -> Vec<Way> {
        let mut ways: Vec<Way> = Vec::new();
        for (from, to) in transfers {
            let (from, to) = (self.place(*from), self.place(*to));
            let asks = match engine {
                Engine::CopyEngine | Engine::Write => from.or(to),
                Engine::Read => to.or(from),
            };
            let Some(by) = asks else { continue };
            let stream = ways.iter().filter(|way| way.by.0 == by).count();
            let slot = ways.iter().filter(|way| way.to == to).count();
            ways.push(Way { from, to, by: (by, stream), slot });
        }
        ways
    }

    /// One request; none where kernels were to reach memory that the driver does not grant.
    fn copy(
        &mut self,
        pattern: Pattern,
        engine: Engine,
        transfers: &[(Place, Place)],
    ) -> Result<Option<CopyLine>, GaveUp> {
        let ways = self.ways(engine, transfers);
        let reached = |way: &Way| {
            way.ends().is_none_or(|(from, to)| {
                self.granted.contains(&if engine == Engine::Read { (to, from) } else { (from, to) })
            })
        };
        let direct = ways.iter().any(|way| way.ends().is_some()).then(|| ways.iter().all(reached));
        if engine != Engine::CopyEngine && direct == Some(false) {
            return Ok(None);
        }
        let samples = self.copies.samples;
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
        let mut check = Check::default();
        // the first wakes the links and does not count; it and the last are checked
        for sample in 0..=samples {
            let checked = sample == 0 || sample == samples;
            if checked {
                self.spoil(&ways)?;
            }
            let taken = self.repeat(engine, &ways)?;
            if checked {
                self.verify(&ways, &mut check)?;
            }
            if 0 < sample {
                times.iter_mut().zip(&taken).for_each(|(times, taken)| times.push(taken.0));
            }
        }
        let bytes = Bytes(LOOPS * 4 * self.words as u64);
        let rates = (0..samples).map(|sample| {
            let slowest = times.iter().map(|times| times[sample]).fold(0.0, f64::max);
            bytes.0 as f64 * ways.len() as f64 / slowest
        });
        let rate = |times: &Vec<f64>| bytes.over(Seconds(stats::median(times)));
        let transfers = transfers
            .iter()
            .zip(&times)
            .map(|((from, to), times)| TransferRate { from: *from, to: *to, rate: rate(times) })
            .collect();
        let rate = spread(&rates.collect::<Vec<_>>(), BytesPerSecond);
        Ok(Some(CopyLine {
            pattern,
            engine,
            direct,
            nvlink: false,
            transfers,
            bytes,
            samples,
            rate,
            ceiling: None,
            check,
        }))
    }

    /// The same transfers again and again, so that somebody else can look at the links: nothing is timed. GPUs are given a
    /// moment to wake up first.
    fn load(&mut self, transfers: &[(Place, Place)], lasts: Seconds) -> Result<(), GaveUp> {
        let ways = self.ways(Engine::CopyEngine, transfers);
        let begin = Instant::now();
        let mut said = false;
        while begin.elapsed().as_secs_f64() < WAKE.0 + lasts.0 {
            if !said && WAKE.0 <= begin.elapsed().as_secs_f64() {
                let gpus = self.copies.sites.iter().map(|(address, _)| *address).collect();
                say(&Report::Copying { gpus });
                said = true;
            }
            self.repeat(Engine::CopyEngine, &ways)?;
            say(&Report::Busy);
        }
        say(&Report::Copying { gpus: Vec::new() });
        Ok(())
    }

    /// Writes at every destination what must not be there afterwards.
    fn spoil(&mut self, ways: &[Way]) -> Result<(), GaveUp> {
        for way in ways {
            if let Some(to) = way.to {
                let site = &mut self.sites[to];
                site.gpu.activate()?;
                site.kernels.paint(&site.streams[0], site.arrivals[way.slot].all_mut(), BEFORE)?;
                site.streams[0].synchronize()?;
            } else if let Some(host) = way.from.and_then(|from| self.sites[from].host.as_mut()) {
                let words = host.arrival.get_mut().iter_mut().enumerate();
                words.for_each(|(index, word)| *word = pattern_word(index as u64, BEFORE));
            }
        }
        Ok(())
    }

    /// All transfers at once; the time of each.
    fn repeat(&mut self, engine: Engine, ways: &[Way]) -> Result<Vec<Seconds>, GaveUp> {
        let words = self.words;
        self.gate.close();
        let mut marks: Vec<(Event, Event)> = Vec::new();
        for way in ways {
            let from = way.from.map(|from| self.sites[from].source.first(words));
            let mut to = way.to.map(|to| self.sites[to].arrivals[way.slot].first(words));
            // the driver goes through the host where one GPU may not reach the other
            let staged = way.ends().is_some_and(|ends| !self.granted.contains(&ends)) && engine == Engine::CopyEngine;
            let (index, stream) = way.by;
            let site = &mut self.sites[index];
            site.gpu.activate()?;
            site.kernels.hold(&site.streams[stream], &self.gate, HOLD)?;
            let begin = site.events.record(&site.streams[stream])?;
            for _ in 0..LOOPS {
                match (&from, &mut to) {
                    (Some(from), Some(to)) if staged => site.streams[stream].copy_across(to, from)?,
                    (from, to) => site.send(engine, stream, from.as_ref(), to.as_mut())?,
                }
            }
            marks.push((begin, site.events.record(&site.streams[stream])?));
        }
        self.gate.open();
        marks.iter().map(|(begin, end)| end.since(begin).map_err(GaveUp::from)).collect()
    }

    /// Every destination looks at its own memory.
    fn verify(&mut self, ways: &[Way], check: &mut Check) -> Result<(), GaveUp> {
        for way in ways {
            let key = way.from.map_or(OF_HOST, |from| from as u32);
            check.words += self.words as u64;
            if let Some(to) = way.to {
                let site = &mut self.sites[to];
                site.gpu.activate()?;
                let stream = &site.streams[0];
                stream.fill(site.report.all_mut(), 0)?;
                site.kernels.compare(stream, site.report.all_mut(), site.arrivals[way.slot].all(), (key, BEFORE))?;
                stream.download(&mut site.told, site.report.all())?;
                stream.synchronize()?;
                check.wrong += site.told.get()[0];
                check.untouched += site.told.get()[1];
            } else if let Some(host) = way.from.and_then(|from| self.sites[from].host.as_ref()) {
                let wrong = |(index, word): &(usize, &u32)| **word != pattern_word(*index as u64, key);
                let before = |index: usize| pattern_word(index as u64, BEFORE);
                for (index, word) in host.arrival.get().iter().enumerate().filter(wrong) {
                    check.wrong += 1;
                    check.untouched += u64::from(*word == before(index));
                }
            }
        }
        Ok(())
    }

    /// Loads of GPU `by` from the memory of `of`, one behind the other; none where it may not.
    fn latency(&mut self, of: Place, by: PciAddress) -> Result<Option<LatencyLine>, GaveUp> {
        let (of_index, by_index) = (self.place(of), self.place(Place::Gpu(by)).unwrap_or(0));
        if of_index.is_some_and(|of| of != by_index && !self.granted.contains(&(by_index, of))) {
            return Ok(None);
        }
        let links = (0..LOADS).map(|load| (load + 1) % LOADS * STRIDE);
        let mut chain = vec![0; (LOADS * STRIDE) as usize];
        links.enumerate().for_each(|(load, next)| chain[load * STRIDE as usize] = next);
        let far = match of_index {
            Some(of) => Some(self.sites[of].keep(&chain)?),
            None => {
                let host = self.sites[by_index].host.as_mut().ok_or(CudaError::NoGpu)?;
                host.arrival.get_mut()[..chain.len()].copy_from_slice(&chain);
                None
            }
        };
        let site = &mut self.sites[by_index];
        site.gpu.activate()?;
        let mut end = site.report.reuse(0, 1, Element::U32).ok_or(CudaError::NoGpu)?;
        let mut times = Vec::new();
        for sample in 0..=self.copies.samples {
            let begin = site.events.record(&site.streams[0])?;
            match (&far, &site.host) {
                (Some(far), _) => site.kernels.chase(&site.streams[0], end.all_mut(), far.all(), LOADS)?,
                (None, Some(host)) => {
                    site.kernels.chase_host(&site.streams[0], end.all_mut(), &host.arrival, LOADS)?;
                }
                (None, None) => return Ok(None),
            }
            let taken = site.events.record(&site.streams[0])?.since(&begin)?;
            if 0 < sample {
                times.push(taken.0 / f64::from(LOADS));
            }
        }
        Ok(Some(LatencyLine { of, by, loads: LOADS, load_s: spread(&times, Seconds) }))
    }
}

impl Site {
    fn open(address: PciAddress, copies: &Copies, words: usize, cache: &mut Cache) -> Result<Self, GaveUp> {
        let gpu = Gpu::open(address)?;
        let kernels = LinkKernels::load(&gpu, &Nvrtc::for_gpu(&gpu)?, cache)?;
        let requests = || {
            copies.requests.iter().filter_map(|request| match request {
                Request::Copy { transfers, .. } | Request::Load { transfers, .. } => Some(transfers),
                Request::Latency { .. } => None,
            })
        };
        let here = Place::Gpu(address);
        let most = |at: fn(&(Place, Place)) -> [Place; 2]| {
            requests().map(|all| all.iter().filter(|way| at(way).contains(&here)).count()).max().unwrap_or(0).max(1)
        };
        let (asked, arriving) = (most(|way| [way.0, way.1]), most(|way| [way.1, way.1]));
        let with_host = requests().flatten().any(|(from, to)| [*from, *to].contains(&Place::Host));
        let bytes = 4 * words as u64;
        let mut arena = Arena::new(&gpu, Bytes(bytes * (1 + arriving as u64) + 4096))?;
        let source = arena.take(words, Element::U32)?;
        let arrivals = (0..arriving).map(|_| arena.take(words, Element::U32)).collect::<Result<_, _>>()?;
        let host = if with_host {
            Some(HostSide { source: Pinned::zeros(&gpu, words)?, arrival: Pinned::zeros(&gpu, words)? })
        } else {
            None
        };
        Ok(Self {
            kernels,
            streams: (0..asked).map(|_| Stream::new(&gpu)).collect::<Result<_, _>>()?,
            events: Events::default(),
            source,
            arrivals,
            report: arena.take(2, Element::U64)?,
            told: Pinned::zeros(&gpu, 2)?,
            host,
            gpu,
        })
    }

    fn paint_sources(&mut self, key: u32) -> Result<(), GaveUp> {
        self.kernels.paint(&self.streams[0], self.source.all_mut(), key)?;
        if let Some(host) = &mut self.host {
            let words = host.source.get_mut().iter_mut().enumerate();
            words.for_each(|(index, word)| *word = pattern_word(index as u64, OF_HOST));
        }
        Ok(self.streams[0].synchronize()?)
    }

    /// Asks one of its streams for one copy; none is the host.
    fn send(
        &mut self,
        engine: Engine,
        stream: usize,
        from: Option<&DeviceBuffer>,
        to: Option<&mut DeviceBuffer>,
    ) -> Result<(), CudaError> {
        let Self { kernels, streams, host, .. } = self;
        let stream = &streams[stream];
        match (engine, from, to, host) {
            (Engine::CopyEngine, Some(from), Some(to), _) => stream.copy(to.all_mut(), from.all()),
            (_, Some(from), Some(to), _) => kernels.carry(stream, to.all_mut(), from.all()),
            (Engine::CopyEngine, None, Some(to), Some(host)) => stream.upload(to.all_mut(), &host.source),
            (_, None, Some(to), Some(host)) => kernels.carry_from_host(stream, to.all_mut(), &host.source),
            (Engine::CopyEngine, Some(from), None, Some(host)) => stream.download(&mut host.arrival, from.all()),
            (_, Some(from), None, Some(host)) => kernels.carry_to_host(stream, &mut host.arrival, from.all()),
            (_, None, None, _) | (_, _, _, None) => Ok(()),
        }
    }

    /// Keeps `words` at the beginning of its first arrival.
    fn keep(&mut self, words: &[u32]) -> Result<DeviceBuffer, CudaError> {
        self.gpu.activate()?;
        let mut staged = Pinned::zeros(&self.gpu, words.len())?;
        staged.get_mut().copy_from_slice(words);
        let mut kept = self.arrivals[0].first(words.len());
        self.streams[0].upload(kept.all_mut(), &staged)?;
        self.streams[0].synchronize()?;
        Ok(kept)
    }
}

pub(super) fn spread<T>(values: &[f64], unit: fn(f64) -> T) -> Spread<T> {
    let (low, high) =
        values.iter().fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(*value), high.max(*value)));
    Spread { median: unit(stats::median(values)), low: unit(low), high: unit(high) }
}
