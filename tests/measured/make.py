#!/usr/bin/env python3
"""Writes the recorded measurements of this folder: links.jsonl beside the topology.yaml of a recorded machine.

    tests/measured/make.py

No hardware took part (origin: simulated). Each begins as a machine in order, whose copies reach 86 % of their link (hosts)
and 85 % (peers), and then shows what the threads in SOURCES.md report, with their figures where they give any. The test
`recorded_measurements_are_judged_as_recorded` in tests/measure.rs judges each; RIGSCALE_BLESS=1 rewrites findings.json.
"""
import json, pathlib

HERE = pathlib.Path(__file__).resolve().parent
LANE = {1: 250e6, 2: 500e6, 3: 8e9 / 8 * 128 / 130, 4: 16e9 / 8 * 128 / 130, 5: 32e9 / 8 * 128 / 130}
HOST, PEER, MIB = 0.86, 0.85, 1 << 20
WORDS = 2 * 64 * MIB


def payload(lanes):
    return LANE[lanes["gen"]] * lanes["width"]


def lanes(gen, width):
    return dict(gen=gen, width=width)


def spread(value, by=0.005):
    return dict(median=value, low=value * (1 - by), high=value * (1 + by))


class Links:
    """The lines of one measurement; methods change what a machine in order would show."""

    def __init__(self, name, machine, gpus, product, granted=True, nvlink=False, via="P2P/CUMEM", busbw=0.75):
        self.name, self.machine, self.gpus, self.granted, self.nvlink = name, machine, gpus, granted, nvlink
        self.head = dict(line="head", schema=1, rigscale="0.1.0", started="2026-11-25T00:00:00Z", origin="simulated",
                         gpus=[dict(address=gpu, name=product, lanes=link) for gpu, link in gpus.items()],
                         software={"cuda driver": "13.0", "nccl": "2.28.9"})
        self.lines = []
        all_gpus = list(gpus)
        for gpu in gpus:
            self.copy("host-to-device", "copy-engine", [("host", gpu)], HOST)
            self.copy("device-to-host", "copy-engine", [(gpu, "host")], HOST)
            self.copy("local", "copy-engine", [(gpu, gpu)], rate=1.5e12, ceiling=False)
        if 1 < len(gpus):
            self.copy("host-to-all", "copy-engine", [("host", gpu) for gpu in gpus], HOST)
            self.copy("all-to-host", "copy-engine", [(gpu, "host") for gpu in gpus], HOST)
        pairs = [(a, b) for a in gpus for b in gpus if a != b]
        for way in pairs:
            for engine in ["copy-engine", "write", "read"] if granted else ["copy-engine"]:
                self.copy("peer", engine, [way], PEER if granted else 0.4, rate=52e9 if nvlink else None)
        if 2 < len(gpus):
            ring = list(zip(all_gpus, all_gpus[1:] + all_gpus[:1]))
            for engine in ["copy-engine", "write"] if granted else ["copy-engine"]:
                self.copy("ring", engine, ring, PEER if granted else 0.4)
                self.copy("all-pairs", engine, pairs, PEER if granted else 0.4)
            for gpu in gpus:
                self.copy("one-to-all", "copy-engine", [way for way in pairs if way[0] == gpu], PEER if granted else 0.4)
                self.copy("all-to-one", "copy-engine", [way for way in pairs if way[1] == gpu], PEER if granted else 0.4)
        if 1 < len(gpus):
            floor = min(payload(link) for link in gpus.values())
            self.sums("default", busbw * floor, via if granted else "SHM/direct/direct")
            self.sums("p2p-off", 0.5 * floor, "SHM/direct/direct")
        for gpu, link in gpus.items():
            self.lines.append(dict(line="load", gpu=gpu, at_rest=lanes(1, link["width"]), least=link, most=link, last=link,
                                   samples=75, p_state=0, throttle=0, replays=0))
            for counter in ["aer-correctable", "aer-non-fatal", "aer-fatal"]:
                self.lines.append(dict(line="counter", at=gpu, counter=counter, before=0, after=0))
            self.lines.append(dict(line="counter", at=gpu, counter="ecc-uncorrected", before=0, after=0))

    def copy(self, pattern, engine, ways, share=1.0, rate=None, ceiling=True):
        count = lambda end, gpu: sum(1 for way in ways if way[end] == gpu)
        can = lambda end, gpu: payload(self.gpus[gpu]) / count(end, gpu) if gpu != "host" else 1e15
        limits = [min(can(0, a), can(1, b)) for a, b in ways]
        rates = [rate or share * limit for limit in limits]
        line = dict(line="copy", pattern=pattern, engine=engine)
        if any(a != b and "host" not in (a, b) for a, b in ways):
            line["direct"] = self.granted
            if self.nvlink:
                line["nvlink"] = True
        line.update(transfers=[dict({"from": a}, to=b, rate=one) for (a, b), one in zip(ways, rates)], bytes=1024 * MIB,
                    samples=5, rate=spread(min(rates) * len(ways)))
        if ceiling and not (self.nvlink and "direct" in line):
            line["ceiling"] = sum(limits)
        self.lines.append(dict(line, check=dict(words=len(ways) * WORDS, wrong=0, untouched=0)))

    def sums(self, arm, busbw, via, wrong=0):
        self.drop(lambda line: line["line"] == "sum" and line["arm"] == arm)
        world = len(self.gpus)
        for size in [4096 << (2 * step) for step in range(10)]:
            time = max(20e-6, 2 * (world - 1) / world * size / busbw)
            self.lines.append(dict(line="sum", ranks=list(self.gpus), arm=arm, bytes=size, time_s=spread(time),
                                   bus_bandwidth=2 * (world - 1) / world * size / time,
                                   check=dict(words=size // 4 * world, wrong=wrong, untouched=0), via=[via]))

    def of(self, **wanted):
        return [line for line in self.lines if all(line.get(key) == value for key, value in wanted.items())]

    def ways(self, pattern, *gpus, **wanted):
        ends = lambda line: {way[end] for way in line["transfers"] for end in ("from", "to")}
        return [line for line in self.of(line="copy", pattern=pattern, **wanted) if set(gpus) <= ends(line)]

    def slow(self, lines, factor, only=None):
        """Rates of these lines times `factor`, of transfers from or to `only` where it is given."""
        for line in lines:
            for way in line["transfers"]:
                if only is None or only in (way["from"], way["to"]):
                    way["rate"] *= factor
            line["rate"] = spread(min(way["rate"] for way in line["transfers"]) * len(line["transfers"]))

    def wrong(self, lines, share=1.0, untouched=True):
        for line in lines:
            words = line["check"]["words"]
            line["check"] = dict(words=words, wrong=int(words * share), untouched=int(words * share) if untouched else 0)

    def drop(self, which):
        self.lines = [line for line in self.lines if not which(line)]

    def broken(self, kind, how, **stage):
        self.lines.append(dict(line="broken", stage=dict(kind=kind, **stage), ending=how))

    def hang_sum(self, arm):
        self.drop(lambda line: line["line"] == "sum" and line["arm"] == arm)
        self.broken("sums", dict(how="hang", limit_s=45.0), ranks=list(self.gpus), arm=arm)

    def uplink(self, upper, lower, can, least=None):
        """The link above a switch, as it was while the GPUs below it copied."""
        place = next(index for index, line in enumerate(self.lines) if line["line"] == "counter")
        self.lines.insert(place, dict(line="uplink", upper=upper, lower=lower, gpus=list(self.gpus), at_rest=can, least=least or can,
                                      most=can, last=can, samples=75))

    def keep(self):
        folder = HERE / self.name
        folder.mkdir(exist_ok=True)
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in [self.head] + self.lines)
        (folder / "links.jsonl").write_text(text)
        topology = (HERE.parent / "machines" / self.machine / "topology.yaml").read_text()
        if self.granted:
            topology = topology.replace(": gpu_not_supported", ": ok").replace(": chipset_not_supported", ": ok")
        (folder / "topology.yaml").write_text(topology)


def gpus(link, *addresses):
    return {f"0000:{address}:00.0": dict(link) for address in addresses}


X16_3, X16_4, X8_5, X16_5 = lanes(3, 16), lanes(4, 16), lanes(5, 8), lanes(5, 16)
A6000 = ("riser-gen3", gpus(X16_3, "01", "e1"), "NVIDIA RTX A6000")
ADA = ("acs-redirect", gpus(X16_4, "01", "e1"), "NVIDIA RTX 5880 Ada Generation")
R3090 = ("threadripper-4gpu", gpus(X16_4, "01", "21", "41", "61"), "NVIDIA GeForce RTX 3090")
PRO = ("slow-under-load", gpus(X16_5, "01", "21", "41", "61"), "NVIDIA RTX PRO 6000 Blackwell Workstation Edition")
DESKTOP = ("desktop-2gpu-x8", gpus(X8_5, "01", "03"), "NVIDIA GeForce RTX 5090")
SWITCH = ("switch-4gpu", gpus(X16_5, "03", "04", "05", "06"), "NVIDIA RTX PRO 6000 Blackwell Server Edition")
SERVER = ("server-8gpu", gpus(X16_5, "06", "07", "75", "84"), "NVIDIA RTX PRO 6000 Blackwell Server Edition")


def in_order():
    # 45.6 GB/s at 16 MiB, 4 x RTX PRO 6000 on one node (nccl.md, section 5)
    return Links("in-order", *SERVER, busbw=45.6e9 / payload(X16_5))


def refused():
    return Links("peers-refused", *R3090, granted=False)


def nvlink():
    return Links("nvlink-bridge", "nvlink-bridge", gpus(X16_4, "01", "e1"), "NVIDIA GeForce RTX 3090", nvlink=True)


def false_grant():
    links = Links("false-grant", *DESKTOP)
    links.wrong(links.ways("peer", engine="copy-engine") + links.ways("peer", engine="write"))
    # a kernel that reads finds zeros: its own memory is written, with nothing of the source's
    links.wrong(links.ways("peer", engine="read"), untouched=False)
    links.hang_sum("default")
    return links


def wrong_data():
    links = Links("wrong-data", *DESKTOP)
    links.wrong(links.ways("peer", engine="copy-engine"), share=1e-5, untouched=False)
    # one word that was not written is wrong data and no false grant
    for line in links.ways("peer", engine="write"):
        line["check"].update(wrong=1, untouched=1)
    return links


def peer_hang():
    links = Links("peer-hang", *ADA)
    links.drop(lambda line: line.get("pattern") == "peer")
    a, b = links.gpus
    for one, other in [(a, b), (b, a)]:
        links.broken("pair", dict(how="hang", limit_s=45.0), **{"from": one, "to": other})
    links.hang_sum("default")
    return links


def peer_fails():
    links = Links("peer-fails", *DESKTOP)
    a, b = links.gpus
    links.drop(lambda line: line.get("pattern") == "peer" and line["transfers"][0]["from"] == a)
    links.broken("pair", dict(how="failed", rank=0, text="CUDA error 719 (CUDA_ERROR_LAUNCH_FAILED)"), **{"from": a, "to": b})
    links.sums("default", 0.5 * payload(X8_5), "SHM/direct/direct")
    return links


def sum_hang():
    links = Links("sum-hang", *DESKTOP)
    links.hang_sum("default")
    return links


def sum_hang_all():
    links = Links("sum-hang-every-way", *PRO)
    links.hang_sum("default")
    links.hang_sum("p2p-off")
    return links


def sum_wrong():
    links = Links("sum-wrong", *ADA)
    links.sums("default", 20e9, "P2P/CUMEM", wrong=7)
    return links


def sum_fails():
    links = Links("sum-fails", *DESKTOP)
    for arm in ["default", "p2p-off"]:
        links.drop(lambda line: line["line"] == "sum" and line["arm"] == arm and 512 << 10 <= line["bytes"])
        text = "NCCL says 1 (unhandled cuda error): an illegal memory access was encountered"
        links.broken("sums", dict(how="failed", rank=1, text=text), ranks=list(links.gpus), arm=arm)
    return links


def forced_peers():
    links = Links("forced-peers-hang", *PRO, via="SHM/direct/direct", busbw=0.5)
    links.hang_sum("p2p-sys")
    return links


def host_hang():
    links = Links("host-hang", *R3090, granted=False)
    links.drop(lambda line: line.get("pattern") in ("host-to-all", "all-to-host"))
    links.broken("host", dict(how="hang", limit_s=45.0), gpus=list(links.gpus))
    return links


def link_fails():
    links = Links("link-fails", *R3090, granted=False)
    links.drop(lambda line: line.get("pattern") in ("ring", "all-pairs", "one-to-all", "all-to-one"))
    text = "its process ended: signal: 6 (SIGABRT) (core dumped)"
    links.broken("together", dict(how="failed", rank=0, text=text), gpus=list(links.gpus))
    return links


def host_wrong():
    links = Links("host-wrong", *DESKTOP, granted=False)
    links.wrong(links.ways("device-to-host", "0000:03:00.0"), share=1e-7, untouched=False)
    return links


def nothing_checked():
    links = Links("nothing-checked", *DESKTOP, granted=False)
    for line in links.ways("host-to-device", "0000:01:00.0"):
        line["check"] = dict(words=0, wrong=0, untouched=0)
    return links


def slow_under_load():
    links = Links("slow-under-load", *PRO)
    gpu, now = "0000:41:00.0", lanes(2, 16)
    for line in links.of(line="load", gpu=gpu):
        line.update(least=now, most=now, last=now)
    slow = payload(now) / payload(X16_5)
    patterns = ["host-to-device", "device-to-host", "peer", "host-to-all", "all-to-host", "one-to-all", "all-to-one", "all-pairs"]
    for pattern in patterns:
        links.slow(links.ways(pattern, gpu), slow, only=gpu)
    # a ring waits for its slowest hop
    links.slow(links.ways("ring"), slow, only=gpu)
    links.sums("default", 0.75 * payload(now), "P2P/CUMEM")
    links.sums("p2p-off", 0.74 * payload(now), "SHM/direct/direct")
    return links


def flapping():
    links = Links("flapping-riser", "bad-riser", gpus(X16_5, "01", "e1"), PRO[2])
    gpu = "0000:e1:00.0"
    for line in links.of(line="load", gpu=gpu):
        line.update(least=lanes(1, 16), most=X16_5, last=X16_5, replays=412)
    links.of(line="counter", at=gpu, counter="aer-correctable")[0].update(before=17, after=429)
    links.of(line="counter", at=gpu, counter="aer-non-fatal")[0].update(before=0, after=1)
    denied = dict(missing="denied", detail="aer_dev_fatal")
    links.of(line="counter", at=gpu, counter="aer-fatal")[0].update(before=denied, after=denied)
    return links


def slow_host():
    # 115 instead of 330 GB/s where ranks are not bound to the node of their GPU (pytorch 115305): a third
    links = Links("slow-host-link", *R3090, granted=False)
    for gpu in links.gpus:
        for pattern in ["host-to-device", "device-to-host"]:
            links.slow(links.ways(pattern, gpu), 115 / 330)
    for pattern in ["host-to-all", "all-to-host"]:
        links.slow(links.ways(pattern), 115 / 330)
    return links


def slow_peers():
    # 3.32 GB/s between two cards on X399 (level1techs)
    links = Links("slow-peers", *A6000)
    for line in links.of(line="copy", pattern="peer"):
        links.slow([line], 3.32e9 / line["rate"]["median"])
    links.sums("default", 3.2e9, "P2P/CUMEM")
    links.sums("p2p-off", 3.1e9, "SHM/direct/direct")
    return links


def iommu():
    # 18.8 GB/s with iommu=pt (gardenlinux 4556): translated, peers lose more than half, and the host's way is faster
    links = Links("iommu-translating", *ADA)
    links.slow(links.of(line="copy", pattern="peer"), 0.45)
    links.sums("default", 9.4e9, "P2P/CUMEM")
    links.sums("p2p-off", 12.7e9, "SHM/direct/direct")
    return links


def one_direction():
    links = Links("one-direction-slow", *ADA)
    links.slow([line for line in links.of(line="copy", pattern="peer") if line["transfers"][0]["from"] == "0000:e1:00.0"], 0.62)
    return links


def peers_faster():
    # 30.3 GB/s through the host, 39.3 with NCCL_P2P_LEVEL=SYS (voipmonitor/rtx6kpro, ESC8000A-E13P)
    links = Links("peers-faster", *PRO, via="SHM/direct/direct", busbw=30.3e9 / payload(X16_5))
    links.sums("p2p-sys", 39.3e9, "P2P/CUMEM")
    return links


def collapse():
    # writes from one switch to several root ports lose 75 to 93 % (rtx6kpro, hardware/collapse-report.md)
    links = Links("collapse", *SERVER)
    links.slow(links.of(line="copy", pattern="one-to-all"), 0.2)
    links.slow(links.of(line="copy", pattern="all-pairs", engine="write"), 0.12)
    links.slow(links.of(line="copy", pattern="ring", engine="write"), 0.25)
    return links


def shared_uplink():
    # concurrent copies spread from 7 to 101 GB/s over GPUs (cuda-samples 357): four GPUs behind one uplink
    links = Links("shared-uplink", *SWITCH)
    links.slow(links.of(line="copy", pattern="host-to-all") + links.of(line="copy", pattern="all-to-host"), 0.26)
    links.sums("p2p-off", 6e9, "SHM/direct/direct")
    links.uplink("0000:00:01.1", "0000:01:00.0", X16_5)
    return links


def slow_uplink():
    # the switch's own link falls to Gen3 while the links of the GPUs below it stay at Gen5: peers are well, the host is far
    links = Links("slow-uplink", *SWITCH)
    slow = payload(X16_3) / payload(X16_5)
    links.slow(links.of(line="copy", pattern="host-to-device") + links.of(line="copy", pattern="device-to-host"), slow)
    links.slow(links.of(line="copy", pattern="host-to-all") + links.of(line="copy", pattern="all-to-host"), slow / 4)
    links.sums("p2p-off", 2e9, "SHM/direct/direct")
    links.uplink("0000:00:01.1", "0000:01:00.0", X16_5, least=X16_3)
    return links


def memory_bound():
    # 28 GB/s with eight cards, 35 with four: bound by the host's memory (nccl 1639)
    links = Links("memory-bound", *R3090, granted=False)
    links.slow(links.of(line="copy", pattern="host-to-all") + links.of(line="copy", pattern="all-to-host"), 0.55)
    return links


def chipset_slot():
    cards = {"0000:05:00.0": lanes(4, 4), "0000:0c:00.0": lanes(4, 8)}
    return Links("chipset-slot", "chipset-x4", cards, "NVIDIA GeForce RTX 3080", granted=False)


def slot_x8():
    # slot 6 of a WRX90E has eight lanes (rtx6kpro)
    cards = gpus(X16_4, "01", "21", "41", "61")
    cards["0000:41:00.0"] = lanes(4, 8)
    return Links("slot-x8", "narrow-link", cards, "NVIDIA RTX A6000", busbw=0.85)


def hot():
    links = Links("hot-gpu", *R3090, granted=False)
    gpu = "0000:61:00.0"
    links.slow(links.ways("local", gpu), 0.6)
    for line in links.of(line="load", gpu=gpu):
        line["throttle"] = 0x68
    return links


def worn_memory():
    links = Links("worn-memory", "worn-memory", gpus(X16_4, "01", "e1"), "NVIDIA RTX A6000")
    links.of(line="counter", at="0000:01:00.0", counter="ecc-uncorrected")[0].update(before=2, after=5)
    return links


for make in [in_order, refused, nvlink, false_grant, wrong_data, peer_hang, peer_fails, sum_hang, sum_hang_all, sum_wrong,
             sum_fails, forced_peers, host_hang, link_fails, host_wrong, nothing_checked, slow_under_load, flapping, slow_host,
             slow_peers, iommu, one_direction, peers_faster, collapse, shared_uplink, slow_uplink, memory_bound, chipset_slot, slot_x8, hot,
             worn_memory]:
    make().keep()
