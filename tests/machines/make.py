#!/usr/bin/env python3
"""Writes the recorded machines: tests/machines/<name>/machine.jsonl, from compact descriptions.

Each description names its source. Facts are transcribed from what owners published; what a source does not tell is
filled in with what the same kernel shows on such hardware, and the source line says so. Run it after a change of the
questions that the probe asks, then `RIGSCALE_BLESS=1 cargo test --test probe`, and read the diff.

`older-capture` and `second-capture` are not made here: they are what versions of schema 1 and 2 wrote of
`threadripper-4gpu` and `acs-redirect`, and stay as they are.
"""

import copy
import json
import pathlib

HERE = pathlib.Path(__file__).parent
ABSENT, DENIED, UNSUPPORTED = "absent", "denied", "unsupported"
SYS = "/sys/bus/pci/devices"
GPU_FACTS = [
    "name", "memory_bytes", "bar1_bytes", "compute_capability", "vbios", "power_limit_mw", "power_default_mw",
    "power_min_mw", "power_max_mw", "gen_now", "width_now", "gen_max", "width_max", "performance_state", "persistence",
    "mig",
]
# What a GPU at rest says that is in order.
AT_REST = {
    "power_cap_us": "0", "thermal_us": "0", "hardware_thermal_us": "0", "power_brake_us": "0",
    "throttle": "1", "compute_mode": "default", "compute_processes": "0", "display_active": "false", "pcie_replays": "0",
}
WITH_ECC = {
    "ecc": "true", "ecc_next": "true", "ecc_uncorrected": "0", "rows_corrected": "0", "rows_uncorrected": "0",
    "rows_pending": "false", "rows_failed": "false",
}
OTHER = ["nvlinks_up", "nvlinks_down", "mig_instances"]
UNSUPPORTED_BY_NVML = "NVML: the requested operation is not available on the target device"
NO_LIBRARY = "NVML: libnvidia-ml.so.1 cannot be loaded"
NO_CUDA = "CUDA: the NVIDIA driver's CUDA library is missing: no libcuda.so.1"
NO_DMI = "/sys/firmware/dmi/entries: no memory device"
RATE = {1: "2.5", 2: "5.0", 3: "8.0", 4: "16.0", 5: "32.0"}


def missing(why, detail=""):
    return {"missing": why, **({"detail": detail} if detail else {})}


class Machine:
    """Questions and answers of one machine, in order."""

    def __init__(self, source):
        self.source = source
        self.answers = {}
        self.functions = {}

    def put(self, ask, answer, phase="at_rest"):
        self.answers[(json.dumps(ask, sort_keys=True), phase)] = (ask, phase, answer)

    def file(self, path, text, phase="at_rest"):
        answer = missing(text, path) if text in (ABSENT, DENIED, UNSUPPORTED) else text + "\n"
        self.put({"file": path}, answer, phase)

    def fact(self, address, **facts):
        for fact, value in facts.items():
            self.put({"gpu": {"at": address, "fact": fact}}, value)

    def peer(self, a, b, status, facts=("read", "write", "atomics")):
        for fact in facts:
            self.put({"peer": {"from": a, "to": b, "fact": fact}}, status)
        if "read" in facts:
            told = status if isinstance(status, str) else None
            answer = ("true" if told == "ok" else "false") if told else missing(ABSENT, NO_CUDA)
            self.put({"peer": {"from": a, "to": b, "fact": "cuda"}}, answer)

    def config(self, address, **more):
        """Writes the configuration space of a function again, with what is said here in the place of the usual."""
        self.functions[address] = {**self.functions.get(address, {}), **more}
        self.put({"config": address}, config(**self.functions[address]))

    def aer(self, address, correctable=0, nonfatal=0, fatal=0):
        for kind, total, count in [("correctable", "COR", correctable), ("nonfatal", "NONFATAL", nonfatal),
                                   ("fatal", "FATAL", fatal)]:
            path = f"{SYS}/{address}/aer_dev_{kind}"
            self.file(path, ABSENT if count is None else f"Undefined 0\nTOTAL_ERR_{total} {count}")

    def gpus(self):
        return sorted(a for a, function in self.functions.items() if function.get("gpu"))

    def write(self, name):
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        head = {"capture": 3, "rigscale": "0.1.0", "redacted": True, "source": self.source}
        lines = [head]
        for ask, phase, answer in self.answers.values():
            lines.append({"ask": ask, **({"phase": phase} if phase != "at_rest" else {}), "answer": answer})
        lines.append({"answers": len(lines) - 1})
        text = "".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n" for line in lines)
        (folder / "machine.jsonl").write_text(text)


def config(*, ids, bridge, shown=4096, lost=False, payload=256, offered=None, request=512, aspm=0, acs=0x11, gpu=False, errors=(0, 0)):
    """Configuration space as a capture spells it. PCIe capability at 60, AER at 100, ACS of a bridge at 2a0."""
    code = lambda size: {128: 0, 256: 1, 512: 2, 1024: 3}[size]
    space = bytearray(4096)
    vendor, device = (int(part, 16) for part in ids.split(":"))
    space[0:8] = vendor.to_bytes(2, "little") + device.to_bytes(2, "little") + bytes([7, 4, 0x10, 0])
    space[0xe], space[0x34] = (1 if bridge else 0), 0x60
    control = code(payload) << 5 | code(request) << 12
    space[0x60:0x64] = bytes([0x10, 0, 0x42 if bridge else 2, 0])
    space[0x64:0x68] = code(offered or (512 if bridge else 256)).to_bytes(4, "little")
    space[0x68:0x6a] = control.to_bytes(2, "little")
    space[0x70:0x72] = aspm.to_bytes(2, "little")
    with_acs = bridge and acs is not None
    space[0x100:0x104] = (1 | 2 << 16 | (0x2a0 if with_acs else 0) << 20).to_bytes(4, "little")
    space[0x104:0x108], space[0x110:0x114] = (bits.to_bytes(4, "little") for bits in errors)
    if with_acs:
        space[0x2a0:0x2a8] = (0xd | 1 << 16).to_bytes(4, "little") + bytes([0x5f, 0]) + acs.to_bytes(2, "little")
    if lost:
        space = bytearray(b"\xff" * 4096)
    space = space[:shown]
    rows = []
    for at in range(0, len(space), 16):
        row = space[at:at + 16]
        if any(row) or at + 16 == len(space):
            rows.append(f"{at:03x}: " + " ".join(f"{byte:02x}" for byte in row) + "\n")
    return "".join(rows)


def resource(bar1=None, region=1):
    """The regions of a GPU with such a window to its memory, or of one that has none."""
    wide, plain = 0x14220c, 0x40200
    sizes = {0: (16 << 20, plain)}
    if bar1:
        sizes[0] = (64 << 20, wide) if region == 2 else sizes[0]
        sizes[region] = (bar1, wide)
        sizes[region + 2] = (32 << 20, wide)
    lines, start = [], 0x20000000000
    for index in range(13):
        size, flags = sizes.get(index, (0, 0))
        start = -(-start // max(size, 1)) * max(size, 1)
        lines.append(f"{start if size else 0:#018x} {start + size - 1 if size else 0:#018x} {flags:#018x}")
        start += size
    return "\n".join(lines)


def settings(m, *, root=True, uptime="356520.12", balancing="0", conf=ABSENT, virtual=False, env=(), user=None, slots=()):
    m.put({"host": "root"}, "true" if root else "false")
    m.file("/proc/uptime", f"{uptime} 11231840.71")
    m.file("/proc/sys/kernel/numa_balancing", balancing)
    m.file("/etc/nccl.conf", conf)
    path = "/run/nvidia-topologyd/virtualTopology.xml"
    m.put({"exists": path}, "true" if virtual else missing(ABSENT, path))
    m.put({"host": "nccl_environment"}, "\n".join(env))
    m.put({"host": "nccl_user_conf"}, user or missing(ABSENT, "NCCL's file of this user"))
    m.put({"host": "memory_slots"}, "\n".join(slots) if slots else missing(*(
        (ABSENT, NO_DMI) if root else (DENIED, "/sys/firmware/dmi/entries/17-*/raw"))))


def libraries(m, nccl="2.30.7", cudnn="9.19.0", cublas="13.1.0.3"):
    for name, version in [("nccl", nccl), ("cudnn", cudnn), ("cublas", cublas)]:
        file = {"nccl": "libnccl.so.2", "cudnn": "libcudnn.so.9", "cublas": "libcublasLt.so.13"}[name]
        m.put({"library": name}, version or missing(ABSENT, file))


def cpulist(cpus):
    runs = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] + 1 == cpu:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def host(m, *, vendor, product, board_vendor, board, bios, os, kernel, cmdline, memory_kib, dmi=True, vm=False):
    rows = [("sys_vendor", vendor), ("product_name", product), ("board_vendor", board_vendor), ("board_name", board),
            ("bios_version", bios[0]), ("bios_date", bios[1])]
    for key, value in rows:
        m.file(f"/sys/class/dmi/id/{key}", value if dmi else ABSENT)
    m.file("/etc/os-release", f'PRETTY_NAME="{os}"\nID={os.split()[0].lower()}')
    m.file("/proc/meminfo", f"MemTotal:       {memory_kib} kB\nMemFree:        {memory_kib // 2} kB")
    m.file("/proc/sys/kernel/osrelease", kernel)
    m.file("/proc/cmdline", cmdline)
    settings(m)


def cpu(m, *, model, nodes, siblings, sockets, vm=False, governor="performance", driver="acpi-cpufreq", allowed=None):
    """nodes: {node: (cpus, memory KiB)}; siblings: list of cores as lists of CPUs; sockets: {socket: set of CPUs}."""
    flags = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr sse sse2 ht syscall nx avx avx2 fma"
    flags += " hypervisor" if vm else ""
    start = f"processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: {model}\nflags\t\t: {flags}\nbugs\t\t: none\n"
    m.put({"start": "/proc/cpuinfo"}, start)
    online = sorted(cpu for core in siblings for cpu in core)
    m.file("/sys/devices/system/cpu/online", cpulist(online))
    m.put({"host": "allowed_cpus"}, cpulist(allowed or online))
    for core in sorted(siblings):
        folder = f"/sys/devices/system/cpu/cpu{core[0]}"
        m.file(f"{folder}/topology/thread_siblings_list", cpulist(core))
        m.file(f"{folder}/topology/physical_package_id", str(next(s for s, cpus in sockets.items() if core[0] in cpus)))
        m.file(f"{folder}/cpufreq/scaling_governor", governor or ABSENT)
        m.file(f"{folder}/cpufreq/scaling_driver", driver if governor else ABSENT)
    m.file("/sys/devices/system/node/online", cpulist(nodes))
    for node, (cpus, kib) in nodes.items():
        folder = f"/sys/devices/system/node/node{node}"
        m.file(f"{folder}/cpulist", cpulist(cpus))
        m.file(f"{folder}/meminfo", f"Node {node} MemTotal:       {kib} kB")
        m.file(f"{folder}/distance", " ".join("10" if other == node else "32" for other in nodes))


def smt(cores, offset):
    """Cores whose siblings are `offset` apart, as AMD and Intel number them."""
    return [[core, core + offset] for core in range(cores)]


def limits(m, *, shm, marks=(), memlock="unlimited", quotas=(ABSENT, ABSENT, ABSENT)):
    for path in ["/run/secrets/kubernetes.io", "/.dockerenv", "/run/.containerenv", "/run/systemd/container"]:
        m.put({"exists": path}, "true" if path in marks else missing(ABSENT, path))
    m.put({"host": "shm_bytes"}, str(shm))
    m.put({"host": "memlock_bytes"}, memlock)
    for up, quota in enumerate(quotas):
        answer = missing(ABSENT, "cpu.max") if quota == ABSENT else quota + "\n"
        m.put({"cgroup": {"file": "cpu.max", "up": up}}, answer)
    m.put({"cgroup": {"file": "cpu.max", "up": len(quotas)}}, missing(UNSUPPORTED, "cpu.max: above the root"))
    none = missing(UNSUPPORTED, "cpu.cfs_quota_us: no control group of that version")
    m.put({"cgroup": {"file": "cpu.cfs_quota_us", "up": 0}}, none)


def device(m, address, ids, node, link):
    """link: (gen now, gen max, width now, width max), or none for a device without one."""
    folder = f"{SYS}/{address}"
    vendor, number = ids.split(":")
    m.file(f"{folder}/vendor", "0x" + vendor)
    m.file(f"{folder}/device", "0x" + number)
    m.file(f"{folder}/numa_node", str(node))
    names = ["current_link_speed", "max_link_speed", "current_link_width", "max_link_width"]
    if link is None:
        values = [ABSENT] * 4
    else:
        values = [f"{RATE[link[0]]} GT/s PCIe", f"{RATE[link[1]]} GT/s PCIe", str(link[2]), str(link[3])]
    for name, value in zip(names, values):
        m.file(f"{folder}/{name}", value)
    m.aer(address)


def pci(m, *, bridges, gpus, others, iommu):
    """bridges: {address: (ids, node, link)}; gpus: {address: dict}; others: {address: class}.

    iommu: (units, type of the groups of GPUs or none, number of groups).
    """
    classes = {**{a: "0x060400" for a in bridges}, **{a: g["class"] for a, g in gpus.items()}, **others}
    m.put({"folder": SYS}, sorted(classes))
    for address in sorted(classes):
        m.file(f"{SYS}/{address}/class", classes[address])
    units, domain, groups = iommu
    for index, (address, gpu) in enumerate(sorted(gpus.items())):
        m.put({"link": f"{SYS}/{address}"}, f"../../../devices/{gpu['path']}/{address}")
        device(m, address, gpu["ids"], gpu["node"], gpu["link"])
        link = f"{SYS}/{address}/driver"
        driver = gpu.get("driver")
        m.put({"link": link}, f"../../../../bus/pci/drivers/{driver}" if driver else missing(ABSENT, link))
        link = f"{SYS}/{address}/iommu_group"
        if groups:
            m.put({"link": link}, f"../../../../kernel/iommu_groups/{20 + index}")
            m.file(f"/sys/kernel/iommu_groups/{20 + index}/type", domain)
        else:
            m.put({"link": link}, missing(ABSENT, link))
        if gpu["ids"].startswith("10de"):
            nvml = gpu.get("nvml") or {}
            for fact in [*GPU_FACTS, *AT_REST, *WITH_ECC, *OTHER]:
                m.put({"gpu": {"at": address, "fact": fact}}, nvml.get(fact, missing(ABSENT, NO_LIBRARY)))
        m.config(address, ids=gpu["ids"], bridge=False, gpu=gpu["ids"].startswith("10de"))
        m.file(f"{SYS}/{address}/resource", gpu.get("resource") or resource())
    for address, (ids, node, link) in bridges.items():
        device(m, address, ids, node, link)
        m.config(address, ids=ids, bridge=True)
    for a in m.gpus():
        for b in m.gpus():
            if a != b:
                said = [gpus[a].get("peer"), gpus[b].get("peer")]
                known = all(said)
                refusals = [word for word in sorted(said, reverse=True) if word != "ok"] if known else []
                m.peer(a, b, [*refusals, "ok"][0] if known else missing(ABSENT, NO_LIBRARY))
                m.peer(a, b, "not_supported" if known else missing(ABSENT, NO_LIBRARY), ["nvlink"])
    m.put({"folder": "/sys/class/iommu"}, units)
    m.put({"folder": "/sys/kernel/iommu_groups"}, [str(group) for group in range(groups)])
    if groups:
        m.file("/sys/kernel/iommu_groups/0/type", domain)


def driver(m, version=None, cuda=None, open_module=False):
    kind = "NVIDIA UNIX Open Kernel Module for x86_64" if open_module else "NVIDIA UNIX x86_64 Kernel Module"
    m.file("/proc/driver/nvidia/version", f"NVRM version: {kind}  {version}  Release Build" if version else ABSENT)
    absent = missing(ABSENT, NO_LIBRARY)
    m.put({"driver": "version"}, version or absent)
    m.put({"driver": "cuda"}, cuda or absent)
    old = (cuda or "13").split(".")[0] == "12"
    libraries(m, cublas="12.4.5.8" if old else "13.1.0.3")


MODELS = {
    # name, memory MiB, BAR1 MiB, capability, PCI ids, generation, power default, min, max W, ECC and MIG known
    "3090": ("NVIDIA GeForce RTX 3090", 24576, 32768, "8.6", "10de:2204", 4, 350, 100, 350),
    "3080": ("NVIDIA GeForce RTX 3080", 20480, 32768, "8.6", "10de:2206", 4, 320, 100, 320),
    "4090": ("NVIDIA GeForce RTX 4090", 24564, 32768, "8.9", "10de:2684", 4, 450, 150, 600),
    "5090": ("NVIDIA GeForce RTX 5090", 32607, 32768, "12.0", "10de:2b85", 5, 575, 400, 600),
    "a6000": ("NVIDIA RTX A6000", 49140, 65536, "8.6", "10de:2230", 4, 300, 100, 300),
    "5880": ("NVIDIA RTX 5880 Ada Generation", 49140, 65536, "8.9", "10de:26b3", 4, 285, 100, 285),
    "a40": ("NVIDIA A40", 46068, 65536, "8.6", "10de:2235", 4, 300, 100, 300),
    "t4": ("Tesla T4", 15360, 256, "7.5", "10de:1eb8", 3, 70, 60, 70),
    "pro6000": ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887, 131072, "12.0", "10de:2bb1", 5, 600, 150, 600),
    "pro6000s": ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887, 131072, "12.0", "10de:2bb5", 5, 600, 300, 600),
}


def gpu(model, path, node, *, width=16, slot_gen=None, slot_width=16, driver="nvidia", now=1, vbios="redacted"):
    name, mib, bar1, capability, ids, gen, default, low, high = MODELS[model]
    unsupported = missing(UNSUPPORTED, UNSUPPORTED_BY_NVML)
    mig = {"pro6000": "false", "pro6000s": "false"}.get(model, unsupported)
    facts = [name, str(mib << 20), str(bar1 << 20), capability, vbios, str(default * 1000), str(default * 1000),
             str(low * 1000), str(high * 1000), str(now), str(width), str(min(gen, slot_gen or gen)),
             str(min(16, slot_width)), "8", "true", mig]
    geforce = "GeForce" in name
    state = {**AT_REST, **{fact: unsupported if geforce else value for fact, value in WITH_ECC.items()}}
    state |= {fact: unsupported for fact in OTHER}
    peer = "ok" if not geforce else "gpu_not_supported" if gen == 5 else "chipset_not_supported"
    return {
        "class": "0x030200" if model in ("pro6000s", "a40") else "0x030000",
        "ids": ids, "path": path, "node": node, "link": (now, gen, width, 16), "driver": driver,
        "nvml": {**dict(zip(GPU_FACTS, facts)), **state} if driver == "nvidia" else None,
        "peer": peer if driver == "nvidia" else None,
        "resource": resource(bar1 << 20, 2 if gen == 5 else 1),
    }


def port(ids, node, gen, width, now=1, width_now=None):
    return (ids, node, (now, gen, width_now or width, width))


def plain_vm():
    m = Machine("A guest of 2 CPUs with virtio devices and no graphics: the device model of Firecracker's documentation. "
                "Constructed.")
    host(m, vendor="", product="", board_vendor="", board="", bios=("", ""), os="Debian GNU/Linux 13 (trixie)",
         kernel="6.12.0", cmdline="console=ttyS0 quiet reboot=k panic=1", memory_kib=8140540, dmi=False)
    cpu(m, model="AMD EPYC", nodes={0: (range(2), 8140540)}, siblings=[[0], [1]], sockets={0: {0, 1}}, vm=True,
        governor=None)
    limits(m, shm=4168 << 20, memlock="8388608", quotas=(ABSENT,))
    pci(m, bridges={}, gpus={}, others={"0000:00:00.0": "0x060000", "0000:00:01.0": "0x018000",
                                       "0000:00:02.0": "0x020000"}, iommu=([], None, 0))
    return m


def threadripper(source=None, model="3090", gen=4, **more):
    m = Machine(source or
                "Four RTX 3090 on WRX80: addresses 01, 21, 41 and 61 from the lspci trees in noonghunna/club-3090 issue "
                "1127, idle Gen1 x16 of Gen4 x16 from issue 1028, driver 595.71.05 from issue 688. Filled in: board and "
                "CPU (a Threadripper PRO 3975WX on a Pro WS WRX80E-SAGE SE WIFI), performance governor, iommu=pt, no ACS "
                "redirect, Resizable BAR.")
    host(m, vendor="ASUS", product="System Product Name", board_vendor="ASUSTeK COMPUTER INC.",
         board="Pro WS WRX80E-SAGE SE WIFI", bios=("1303", "08/08/2024"), os="Ubuntu 24.04.2 LTS",
         kernel="6.8.0-51-generic", cmdline="BOOT_IMAGE=redacted root=redacted ro iommu=pt", memory_kib=263834112)
    cpu(m, model="AMD Ryzen Threadripper PRO 3975WX 32-Cores", nodes={0: (range(64), 263834112)}, siblings=smt(32, 32),
        sockets={0: set(range(64))}, **more.pop("cpu", {}))
    limits(m, **more.pop("limits", {"shm": 128825 << 20}))
    ids = "1022:1483"
    roots = {"01": "0000:00", "21": "0000:20", "41": "0000:40", "61": "0000:60"}
    gpus = {f"0000:{bus}:00.0": gpu(model, f"pci{root}/{root}:01.1", 0, slot_gen=gen) for bus, root in roots.items()}
    bridges = {f"{root}:01.1": port(ids, 0, gen, 16) for root in roots.values()}
    others = {"0000:00:00.0": "0x060000", "0000:00:00.2": "0x080600", "0000:02:00.0": "0x010802",
              "0000:43:00.0": "0x020000"}
    others |= {f"0000:{bus}:00.1": "0x040300" for bus in roots}
    pci(m, bridges=bridges, gpus=gpus, others=others, iommu=(["ivhd0", "ivhd1", "ivhd2", "ivhd3"], "identity", 60))
    driver(m, "595.71.05", "13.2")
    return m


def desktop(model="5090", drivers=("nvidia", "nvidia")):
    m = Machine("Two RTX 5090 at x8/x8 on a B850 board: noonghunna/club-3090 issue 822 (board, BIOS, CPU, kernel, driver, "
                "x8 of x16), tree 00:01.1-[01] and 00:01.4-[03] from issue 858. Filled in: root ports that offer Gen5 x8, "
                "amd-pstate-epp with powersave and a translating IOMMU, which are Ubuntu's defaults.")
    host(m, vendor="Gigabyte Technology Co., Ltd.", product="B850 AI TOP",
         board_vendor="Gigabyte Technology Co., Ltd.", board="B850 AI TOP", bios=("F13c", "07/21/2026"),
         os="Ubuntu 24.04.4 LTS", kernel="7.0.0-28-generic", cmdline="BOOT_IMAGE=redacted root=redacted ro quiet splash",
         memory_kib=63544320)
    cpu(m, model="AMD Ryzen 9 9950X3D 16-Core Processor", nodes={0: (range(32), 63544320)}, siblings=smt(16, 16),
        sockets={0: set(range(32))}, governor="powersave", driver="amd-pstate-epp")
    limits(m, shm=31028 << 20, memlock="8388608")
    gpus = {}
    for address, slot, held in [("0000:01:00.0", "01.1", drivers[0]), ("0000:03:00.0", "01.4", drivers[1])]:
        gpus[address] = gpu(model, f"pci0000:00/0000:00:{slot}", -1, width=8, slot_width=8, driver=held)
    bridges = {f"0000:00:{slot}": port("1022:14db", -1, 5, 8) for slot in ("01.1", "01.4")}
    others = {"0000:00:00.0": "0x060000", "0000:01:00.1": "0x040300", "0000:02:00.0": "0x010802",
              "0000:03:00.1": "0x040300", "0000:12:00.2": "0x0c0330"}
    pci(m, bridges=bridges, gpus=gpus, others=others, iommu=(["ivhd0"], "DMA-FQ", 32))
    held = "nvidia" in drivers
    driver(m, *(("595.71.05", "13.2", True) if held else ()))
    for address in bridges:
        m.config(address, acs=0x1d)  # what the kernel sets where the IOMMU is on
    return m


def no_driver():
    m = desktop("4090", ("nouveau", None))
    m.source = ("The x8/x8 desktop with two RTX 4090 and without the NVIDIA driver: nouveau holds one card, nothing the "
                "other. Constructed.")
    return m


def server():
    m = Machine("ASUS ESC8000A-E13P, two EPYC 9575F, eight RTX PRO 6000 Server behind four PEX890xx: lspci, lscpu, numactl, "
                "dmidecode, nvidia-smi and kernel command line in voipmonitor/rtx6kpro 29f3863, logs/asus-report. CPU "
                "239 is offline there. Filled in: performance governor, limits.")
    host(m, vendor="ASUSTeK COMPUTER INC.", product="ESC8000A-E13P", board_vendor="ASUSTeK COMPUTER INC.",
         board="K15PG-D24 Series", bios=("1104", "10/23/2025"), os="Ubuntu 24.04.3 LTS", kernel="6.17.0-20-generic",
         cmdline="BOOT_IMAGE=redacted root=redacted ro rd.auto=redacted mitigations=off amd_iommu=off iommu=off",
         memory_kib=(773676 + 774030) * 1024)
    siblings = [[core, core + 128] if core != 111 else [111] for core in range(128)]
    first = set(range(64)) | set(range(128, 192))
    second = set(range(64, 128)) | set(range(192, 256)) - {239}
    cpu(m, model="AMD EPYC 9575F 64-Core Processor", siblings=siblings, sockets={0: first, 1: second},
        nodes={0: (first, 773676 * 1024), 1: (second, 774030 * 1024)})
    limits(m, shm=773853 << 20)
    bridges, gpus = {}, {}
    for root, up, ports, node in [("00", "01", {"03": "06", "04": "07"}, 0), ("70", "71", {"02": "75", "03": "76"}, 0),
                                  ("80", "81", {"01": "84", "02": "85"}, 1), ("f0", "f1", {"01": "f4", "02": "f5"}, 1)]:
        inner = f"{int(up, 16) + 1:02x}"
        bridges[f"0000:{root}:01.1"] = port("1022:153e", node, 5, 16, now=5)
        bridges[f"0000:{up}:00.0"] = port("1000:c030", node, 5, 16, now=5)
        for slot, bus in ports.items():
            bridges[f"0000:{inner}:{slot}.0"] = port("1000:c030", node, 5, 16)
            path = f"pci0000:{root}/0000:{root}:01.1/0000:{up}:00.0/0000:{inner}:{slot}.0"
            gpus[f"0000:{bus}:00.0"] = gpu("pro6000s", path, node, vbios="98.02.67.00.0A")
    bridges["0000:50:03.3"] = ("1022:1554", 0, (2, 3, 1, 2))
    bridges["0000:51:00.0"] = ("1a03:1150", 0, (2, 2, 1, 1))
    gpus["0000:52:00.0"] = {"class": "0x030000", "ids": "1a03:2000", "path": "pci0000:50/0000:50:03.3/0000:51:00.0",
                            "node": 0, "link": None, "driver": "ast"}
    others = {"0000:00:00.0": "0x060000", "0000:02:00.0": "0x060400", "0000:e1:00.0": "0x010802"}
    pci(m, bridges=bridges, gpus=gpus, others=others, iommu=([], None, 0))
    driver(m, "595.58.03", "13.2", True)
    for address in m.functions:  # the firmware keeps the errors there: no AER for the kernel
        m.aer(address, None, None, None)
    return m


def chipset():
    m = Machine("RTX 3080 at x4 on the chipset beside an RTX 5090 and an RTX 3080 at x8: noonghunna/club-3090 issue 707 "
                "(PRIME X570-PRO, BIOS 4408, 5950X, 05:00.0 at x4, driver 595.58.03); the shape of an X570 tree from issue "
                "1120. Filled in: the addresses 0b and 0c.")
    host(m, vendor="System manufacturer", product="System Product Name", board_vendor="ASUSTeK COMPUTER INC.",
         board="PRIME X570-PRO", bios=("4408", "10/27/2022"), os="Debian GNU/Linux 13 (trixie)", kernel="6.17.2-2-pve",
         cmdline="BOOT_IMAGE=redacted root=redacted ro iommu=pt quiet", memory_kib=131841628)
    cpu(m, model="AMD Ryzen 9 5950X 16-Core Processor", nodes={0: (range(32), 131841628)}, siblings=smt(16, 16),
        sockets={0: set(range(32))})
    limits(m, shm=64375 << 20)
    chain = "pci0000:00/0000:00:01.2/0000:02:00.0/0000:03:08.0"
    gpus = {
        "0000:05:00.0": gpu("3080", chain, -1, width=4, slot_width=4),
        "0000:0b:00.0": gpu("5090", "pci0000:00/0000:00:03.1", -1, width=8, slot_gen=4, slot_width=8),
        "0000:0c:00.0": gpu("3080", "pci0000:00/0000:00:03.2", -1, width=8, slot_width=8),
    }
    bridges = {"0000:00:01.2": port("1022:1483", -1, 4, 4, now=4), "0000:02:00.0": port("1022:57ad", -1, 4, 4, now=4),
               "0000:03:08.0": port("1022:57a3", -1, 4, 4), "0000:00:03.1": port("1022:1483", -1, 4, 8),
               "0000:00:03.2": port("1022:1483", -1, 4, 8)}
    others = {"0000:00:00.0": "0x060000", "0000:01:00.0": "0x010802", "0000:04:00.0": "0x020000"}
    pci(m, bridges=bridges, gpus=gpus, others=others, iommu=(["ivhd0"], "identity", 30))
    driver(m, "595.58.03", "13.2", True)
    return m


def chipset_uplink():
    m = chipset()
    m.source = ("The third slot of an ASUS Pro WS X570-ACE: x8 of the X570 chipset (the maker's specification), whose own "
                "uplink is Gen4 x4. Two RTX 4090. Constructed.")
    m.file("/sys/class/dmi/id/board_name", "Pro WS X570-ACE")
    m.file("/sys/class/dmi/id/bios_version", "4702")
    m.file("/sys/class/dmi/id/bios_date", "10/20/2023")
    for key in list(m.answers):
        if "05:00.0" in key[0] or "0b:00.0" in key[0] or "0c:00.0" in key[0] or "0000:03" in key[0]:
            del m.answers[key]
    m.functions.clear()
    chain = "pci0000:00/0000:00:01.2/0000:02:00.0/0000:03:08.0"
    gpus = {"0000:05:00.0": gpu("4090", chain, -1, width=8, slot_width=8),
            "0000:0b:00.0": gpu("4090", "pci0000:00/0000:00:03.1", -1, width=16)}
    bridges = {"0000:00:01.2": port("1022:1483", -1, 4, 4, now=4), "0000:02:00.0": port("1022:57ad", -1, 4, 4, now=4),
               "0000:03:08.0": port("1022:57a3", -1, 4, 8), "0000:00:03.1": port("1022:1483", -1, 4, 16)}
    others = {"0000:00:00.0": "0x060000", "0000:01:00.0": "0x010802", "0000:04:00.0": "0x020000"}
    pci(m, bridges=bridges, gpus=gpus, others=others, iommu=(["ivhd0"], "identity", 30))
    return m


def unprivileged():
    m = threadripper("The four-GPU workstation as an unprivileged user sees it where an administrator has closed parts of "
                     "/sys and the driver's library: one PCI class, the speeds of one slot, the types of IOMMU groups, "
                     "the frequency settings and some NVML facts are denied. Constructed.")
    denied = ["/0000:43:00.0/class", "/0000:40:01.1/max_link_speed", "/0000:40:01.1/max_link_width", "/type",
              "scaling_governor", "scaling_driver", "power_limit_mw", "osrelease"]
    for key, (ask, phase, answer) in list(m.answers.items()):
        if any(end in key[0] for end in denied):
            path = ask.get("file", "")
            text = f"{path}: Permission denied (os error 13)" if path else "NVML: the current user does not have permission"
            m.answers[key] = (ask, phase, missing(DENIED, text))
    settings(m, root=False)
    for address in m.functions:
        m.config(address, shown=64)
    return m


def numa_unknown():
    m = Machine("A two-socket EPYC Rome server whose firmware names no NUMA node for its RTX 4090 cards: NVIDIA/nccl issue "
                "814 (numaid -1, family 143 model 49, Gen4 x16). Filled in: four cards on four root complexes, board "
                "unnamed, EPYC 7742.")
    host(m, vendor="", product="", board_vendor="", board="", bios=("", ""), os="Ubuntu 22.04.2 LTS",
         kernel="5.15.0-67-generic", cmdline="BOOT_IMAGE=redacted root=redacted ro", memory_kib=527937536)
    first, second = set(range(64)) | set(range(128, 192)), set(range(64, 128)) | set(range(192, 256))
    cpu(m, model="AMD EPYC 7742 64-Core Processor", siblings=smt(128, 128), sockets={0: first, 1: second},
        nodes={0: (first, 263968768), 1: (second, 263968768)})
    limits(m, shm=257782 << 20)
    roots = {"01": "0000:00", "41": "0000:40", "81": "0000:80", "c1": "0000:c0"}
    gpus = {f"0000:{bus}:00.0": gpu("4090", f"pci{root}/{root}:01.1", -1) for bus, root in roots.items()}
    pci(m, bridges={f"{root}:01.1": port("1022:1483", -1, 4, 16) for root in roots.values()}, gpus=gpus,
        others={"0000:00:00.0": "0x060000"}, iommu=(["ivhd0"], "identity", 90))
    driver(m, "525.85.05", "12.0")
    return m


def container():
    m = threadripper("A Docker container on the four-GPU workstation, started with `--cpus 8` and without `--shm-size`: "
                     "Docker's documentation (64 MiB of /dev/shm) and cgroup v2. Constructed.",
                     limits={"shm": 64 << 20, "marks": ("/.dockerenv",), "memlock": "8388608",
                             "quotas": ("800000 100000",)})
    m.file("/etc/os-release", 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\nID=ubuntu')
    for address in m.functions:  # root in a container lacks CAP_SYS_ADMIN
        m.config(address, shown=64)
    return m


def slow_under_load():
    m = threadripper("Four RTX PRO 6000 of which one stays at Gen2 x16 while it trains, as in local-inference-lab/rtx6kpro "
                     "pull request 88. Board and CPU of the WRX80 workstation with Gen5 slots instead. Constructed.",
                     model="pro6000", gen=5)
    m.file("/sys/class/dmi/id/board_name", "Pro WS WRX90E-SAGE SE")
    driver(m, "595.71.05", "13.2", True)
    for root, bus in [("00", "01"), ("20", "21"), ("40", "41"), ("60", "61")]:
        rate = "5.0 GT/s PCIe" if bus == "41" else "32.0 GT/s PCIe"
        for address in (f"0000:{root}:01.1", f"0000:{bus}:00.0"):
            m.file(f"{SYS}/{address}/current_link_speed", rate, phase="under_load")
    return m


def narrow_link():
    m = threadripper("A card that trained at x8 in an x16 slot of a WRX80 board: linuxhw/LsPCI, Pro WS WRX80E-SAGE SE WIFI "
                     "II, F31931646CF3, ROCKY-9.2 (LnkSta x8 downgraded). Cards of the kind RTX A6000. Filled in: the rest.",
                     model="a6000")
    for address in ("0000:40:01.1", "0000:41:00.0"):
        m.file(f"{SYS}/{address}/current_link_width", "8")
    m.put({"gpu": {"at": "0000:41:00.0", "fact": "width_now"}}, "8")
    return m


def vm_passthrough():
    m = Machine("A Proxmox guest with two RTX 3090 passed through, x8/x8 on the host: noonghunna/club-3090 issue 642 (KVM, "
                "Ryzen 7 5800X, 12 threads, driver 595.71.05, x8 of x16). Filled in: QEMU's root ports, which claim Gen4 "
                "x32 whatever the host has.")
    host(m, vendor="QEMU", product="Standard PC (Q35 + ICH9, 2009)", board_vendor=ABSENT, board=ABSENT,
         bios=("4.2025.02-3", "04/03/2025"), os="Ubuntu 22.04.5 LTS", kernel="6.8.0-124-generic",
         cmdline="BOOT_IMAGE=redacted root=redacted ro", memory_kib=56623104)
    cpu(m, model="AMD Ryzen 7 5800X 8-Core Processor", nodes={0: (range(12), 56623104)},
        siblings=[[cpu] for cpu in range(12)], sockets={0: set(range(12))}, vm=True, governor=None)
    limits(m, shm=27648 << 20)
    gpus = {f"0000:0{bus}:00.0": gpu("3090", f"pci0000:00/0000:00:1c.{bus - 1}", -1, width=8) for bus in (1, 2)}
    gpus["0000:00:01.0"] = {"class": "0x030000", "ids": "1234:1111", "path": "pci0000:00", "node": -1, "link": None,
                            "driver": "bochs-drm"}
    bridges = {f"0000:00:1c.{slot}": ("1b36:000c", -1, (1, 4, 8, 32)) for slot in (0, 1)}
    pci(m, bridges=bridges, gpus=gpus, others={"0000:00:00.0": "0x060000"}, iommu=([], None, 0))
    driver(m, "595.71.05", "13.2")
    for address in m.functions:
        m.config(address, acs=None)
        m.aer(address, None, None, None)
    return m


def workstation(source, model="pro6000", gen=5, slot_gen=None, **more):
    """Two cards on two root complexes of a Threadripper PRO: what is not said is in order."""
    m = Machine(source)
    host(m, vendor="ASUS", product="System Product Name", board_vendor="ASUSTeK COMPUTER INC.",
         board="Pro WS WRX90E-SAGE SE", bios=("1203", "07/18/2025"), os="Ubuntu 24.04.3 LTS", kernel="6.14.0-37-generic",
         cmdline=more.get("cmdline", "BOOT_IMAGE=redacted root=redacted ro iommu=pt"), memory_kib=263834112)
    cpu(m, model=more.get("cpu", "AMD Ryzen Threadripper PRO 7975WX 32-Cores"), nodes={0: (range(64), 263834112)},
        siblings=smt(32, 32), sockets={0: set(range(64))}, vm=more.get("vm", False),
        governor=more.get("governor", "performance"), allowed=more.get("allowed"))
    limits(m, shm=128825 << 20, marks=more.get("marks", ()), memlock=more.get("memlock", "unlimited"))
    models = model if isinstance(model, tuple) else (model, model)
    places = [("01", "0000:00"), ("e1", "0000:e0")]
    gpus = {f"0000:{bus}:00.0": gpu(one, f"pci{root}/{root}:01.1", 0, slot_gen=slot_gen or gen,
                                    driver=more.get("driver", "nvidia"))
            for one, (bus, root) in zip(models, places)}
    bridges = {f"{root}:01.1": port("1022:14ab", 0, slot_gen or gen, 16) for _, root in places}
    others = {"0000:00:00.0": "0x060000", "0000:02:00.0": "0x010802"}
    others |= {f"0000:{bus}:00.1": "0x040300" for bus, _ in places}
    pci(m, bridges=bridges, gpus=gpus, others=others, iommu=(["ivhd0", "ivhd1"], "identity", 60))
    driver(m, "595.58.03", "13.2", True)
    return m


FIRST, SECOND = "0000:01:00.0", "0000:e1:00.0"
PORTS = ("0000:00:01.1", "0000:e0:01.1")


def idle_gen1():
    return workstation("Two RTX PRO 6000 that idle at Gen1 x16 of Gen5 x16, as voipmonitor/rtx6kpro 29f3863, logs/asus-report, "
                       "shows all eight (LnkSta 2.5GT/s, downgraded): in order. Board and CPU of a WRX90 workstation. "
                       "Constructed.")


def switch():
    m = Machine("Four RTX PRO 6000 Server below one PEX890xx: one quarter of the tree of voipmonitor/rtx6kpro 29f3863, "
                "logs/asus-report, with four cards below the switch as in its collapse report. ACSCtl SrcValid+ UpstreamFwd+ "
                "as there. Constructed.")
    host(m, vendor="ASUSTeK COMPUTER INC.", product="ESC8000A-E13P", board_vendor="ASUSTeK COMPUTER INC.",
         board="K15PG-D24 Series", bios=("1104", "10/23/2025"), os="Ubuntu 24.04.3 LTS", kernel="6.17.0-20-generic",
         cmdline="BOOT_IMAGE=redacted root=redacted ro amd_iommu=off iommu=off", memory_kib=792244224)
    cpu(m, model="AMD EPYC 9575F 64-Core Processor", nodes={0: (range(128), 792244224)}, siblings=smt(64, 64),
        sockets={0: set(range(128))})
    limits(m, shm=386836 << 20)
    bridges = {"0000:00:01.1": port("1022:153e", 0, 5, 16, now=5), "0000:01:00.0": port("1000:c030", 0, 5, 16, now=5)}
    gpus = {}
    for slot, bus in {"01": "03", "02": "04", "03": "05", "04": "06"}.items():
        bridges[f"0000:02:{slot}.0"] = port("1000:c030", 0, 5, 16)
        path = f"pci0000:00/0000:00:01.1/0000:01:00.0/0000:02:{slot}.0"
        gpus[f"0000:{bus}:00.0"] = gpu("pro6000s", path, 0, vbios="98.02.67.00.0A")
    pci(m, bridges=bridges, gpus=gpus, others={"0000:00:00.0": "0x060000"}, iommu=([], None, 0))
    driver(m, "595.58.03", "13.2", True)
    return m


def riser():
    return workstation("Two RTX A6000 on Gen3 risers, for which both slots are set to Gen3 in the "
                       "BIOS: the remedy of janhq/jan issue 183 and open-mpi/hwloc issue 653. Constructed.",
                       model="a6000", gen=4, slot_gen=3)


def bad_riser():
    m = workstation("Two RTX PRO 6000, one on a riser that damages packets: the counters of NVIDIA/DCGM's PCIe plug-in and of "
                    "the kernel's AER documentation, at rates above DCGM's limits. Constructed.")
    settings(m, uptime="7260.55")
    m.aer(FIRST, correctable=18240, nonfatal=3)
    m.config(FIRST, errors=(0, 1 << 0 | 1 << 6 | 1 << 7))
    m.aer(PORTS[0], correctable=20011, nonfatal=1, fatal=1)
    m.fact(FIRST, pcie_replays="4711")
    return m


def acs_redirect():
    m = workstation("Two RTX 5880 Ada whose all-reduce hangs: NVIDIA/nccl issue 2079 (AMD GPP bridges, ACSCtl 0x001d, PHB). "
                    "Filled in: the rest.", model="5880", gen=4)
    for address in PORTS:
        m.config(address, acs=0x1d)
    return m


def small_bar():
    m = workstation("Two RTX 4090 with a BAR1 of 256 MiB, read without root: linuxhw/LsPCI, Pro WS WRX80E-SAGE SE WIFI II, "
                    "03CC0346A0DA, ALMA-8.9 (capabilities denied, region 1 of 256M). Filled in: the second card and the rest.",
                    model="4090", gen=4)
    settings(m, root=False)
    for address in m.functions:
        m.config(address, shown=64)
    for address in m.gpus():
        m.file(f"{SYS}/{address}/resource", resource(256 << 20))
        m.fact(address, bar1_bytes=str(256 << 20))
    return m


def lost_gpu():
    m = threadripper("The four-GPU workstation after one card fell off the bus (every bit of its configuration space is set, "
                     "NVML says that it is lost) and another could not be initialised (RmInitAdapter failed): Xid 79 of NVIDIA's "
                     "Xid documentation. Constructed.")
    m.config("0000:41:00.0", lost=True)
    for name, value in [("current_link_speed", "Unknown"), ("current_link_width", "63"), ("max_link_speed", "Unknown"),
                        ("max_link_width", "63")]:
        m.file(f"{SYS}/0000:41:00.0/{name}", value)
    said = {"0000:41:00.0": "NVML: the GPU has fallen off the bus or has otherwise become inaccessible",
            "0000:61:00.0": "NVML: an unknown error occurred"}
    for key, (ask, phase, answer) in list(m.answers.items()):
        about = ask.get("gpu", {}).get("at"), ask.get("peer", {}).get("from"), ask.get("peer", {}).get("to")
        for address, text in said.items():
            if address in about:
                m.answers[key] = (ask, phase, missing("garbled", text))
    return m


def mig_on():
    m = workstation("Two RTX PRO 6000 Server in MIG mode: NVIDIA/nccl issue 1716 (slices of one GPU exchange through shared "
                    "memory) and NVIDIA's MIG User Guide (no peer access). Constructed.", model="pro6000s")
    for address in m.gpus():
        m.fact(address, mig="true", mig_instances="4")
    for a, b in [(FIRST, SECOND), (SECOND, FIRST)]:
        m.peer(a, b, "not_supported")
    return m


def mixed():
    m = workstation("Cards of two generations in one machine, RTX 5090 and RTX A6000: aikitoria/open-gpu-kernel-modules issue 1 "
                    "and pull request 5 (4090, 5090, A6000 and 3090 together). Filled in: the rest.", model=("5090", "a6000"))
    for a, b in [(FIRST, SECOND), (SECOND, FIRST)]:
        m.peer(a, b, "gpu_not_supported")
    return m


def vm_no_p2p():
    m = workstation("A cloud guest with two RTX PRO 6000 and no peer access: CNS as `nvidia-smi topo -p2p` shows it in guests "
                    "(NVIDIA/nccl issue 1127, the 4x4090 cloud report of 2026-01), a virtual topology as Azure and others bring "
                    "it. QEMU's root ports claim Gen4 x32. Constructed.", vm=True, governor=None, cpu="AMD EPYC-Genoa Processor")
    settings(m, virtual=True)
    for key, value in [("sys_vendor", "QEMU"), ("product_name", "Standard PC (Q35 + ICH9, 2009)"),
                       ("board_vendor", ABSENT), ("board_name", ABSENT), ("bios_version", "4.2025.02-3"),
                       ("bios_date", "04/03/2025")]:
        m.file(f"/sys/class/dmi/id/{key}", value)
    for address in m.functions:
        m.config(address, acs=None)
        m.aer(address, None, None, None)
    for address in PORTS:
        m.file(f"{SYS}/{address}/vendor", "0x1b36")
        m.file(f"{SYS}/{address}/device", "0x000c")
        m.file(f"{SYS}/{address}/max_link_speed", "16.0 GT/s PCIe")
        m.file(f"{SYS}/{address}/max_link_width", "32")
    for a, b in [(FIRST, SECOND), (SECOND, FIRST)]:
        m.peer(a, b, "chipset_not_supported")
    return m


def worn_memory():
    m = workstation("Two RTX A6000 with worn memory: the counters and words of NVIDIA's GPU Memory Error Management. "
                    "Constructed.", model="a6000", gen=4)
    m.fact(FIRST, ecc_uncorrected="2", rows_uncorrected="3", rows_failed="true")
    m.fact(SECOND, ecc="false", ecc_next="true", rows_corrected="1", rows_pending="true")
    return m


def hot_and_hungry():
    m = workstation("Two RTX PRO 6000, one of which the supply makes brake while the other is too hot: the bits of "
                    "nvmlClocksEventReasons; they combine, which huggingface/gpu-fryer overlooked. Constructed.")
    m.fact(FIRST, throttle=str(0x80 | 0x8))
    m.fact(SECOND, throttle=str(0x40 | 0x20 | 0x8))
    return m


def set_by_hand():
    m = workstation("Two RTX A6000 that others have set to their liking: compute modes, power limits, clocks, persistence, "
                    "/etc/nccl.conf with LL128 as in NVIDIA/nccl issue 281, a display, somebody's process. Constructed.",
                    model="a6000", gen=4, cmdline="BOOT_IMAGE=redacted root=redacted ro iommu=pt pcie_acs_override=downstream")
    settings(m, conf="# tuned\nNCCL_PROTO=LL,LL128,Simple\nNCCL_P2P_LEVEL=SYS")
    m.fact(FIRST, compute_mode="prohibited", power_limit_mw="250000", throttle=str(0x2), vbios="94.02.5C.00.03")
    m.fact(SECOND, compute_mode="exclusive_process", compute_processes="1", display_active="true", persistence="false",
           vbios="94.02.6D.00.0A")
    for key, value in [("read", "disabled_by_registry"), ("write", "disabled_by_registry"), ("atomics", "not_supported")]:
        m.peer(FIRST, SECOND, value, [key])
    return m


def odd_links():
    m = workstation("Two RTX PRO 6000 whose links are set oddly: ASPM as in local-inference-lab/rtx6kpro (surprise link down), "
                    "packet sizes as `lspci -vv` shows them on boards that leave them alone. Constructed.")
    m.config(PORTS[0], payload=128, aspm=2)
    m.config(FIRST, aspm=2, request=128)
    m.config(PORTS[1], payload=128)
    m.config(SECOND, payload=128)
    return m


def driver_mismatch():
    m = workstation("A workstation after its driver was updated and before it was restarted: NVML error 18, as every user of "
                    "unattended upgrades meets it. Constructed.", driver="nvidia")
    said = missing("garbled", "NVML: a driver/library version mismatch was detected")
    for key, (ask, phase, answer) in list(m.answers.items()):
        if {"gpu", "peer", "driver"} & ask.keys():
            m.answers[key] = (ask, phase, said)
    return m


def container_without_library():
    m = workstation("A container on the workstation without NVIDIA's runtime, on one core: NVIDIA Container "
                    "Toolkit documentation. Constructed.", marks=("/.dockerenv",), memlock="8388608", allowed=[5, 37])
    for key, (ask, phase, answer) in list(m.answers.items()):
        if {"gpu", "peer", "driver"} & ask.keys():
            m.answers[key] = (ask, phase, missing(ABSENT, NO_LIBRARY))
    for address in m.functions:
        m.config(address, shown=64)
    return m


def container_one_gpu():
    m = workstation("A container that was given one of two RTX PRO 6000 (`--gpus device=0`): NVIDIA Container Toolkit "
                    "documentation. NVML does not find the other. Constructed.", marks=("/.dockerenv",))
    for key, (ask, phase, answer) in list(m.answers.items()):
        about = ask.get("gpu", {}).get("at"), ask.get("peer", {}).get("from"), ask.get("peer", {}).get("to")
        if SECOND in about:
            m.answers[key] = (ask, phase, missing(ABSENT, "NVML: the requested object was not found"))
    for address in m.functions:
        m.config(address, shown=64)
    return m


def closed_module():
    m = workstation("Two RTX 5090 with the proprietary kernel module, which does not take Blackwell: NVIDIA driver README, Open "
                    "Linux Kernel Modules. Constructed.", model="5090", driver=None)
    m.file("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Release Build")
    absent = missing(ABSENT, "NVML: the NVIDIA driver is not loaded")
    m.put({"driver": "version"}, absent)
    m.put({"driver": "cuda"}, absent)
    return m


def nvlink():
    m = workstation("Two RTX 3090 under an NVLink bridge of which one link of four is down: NVIDIA/DCGM issue 198 (passes with "
                    "NVLinks down); a 3090 has four. Filled in: the rest.", model="3090", gen=4)
    for address in m.gpus():
        m.fact(address, nvlinks_up="3", nvlinks_down="1")
    for a, b in [(FIRST, SECOND), (SECOND, FIRST)]:
        m.peer(a, b, "ok", ["read", "write", "atomics", "nvlink"])
    return m


def split_socket():
    m = Machine("Four A40 on one EPYC 7302 set to four NUMA nodes per socket, with the memory channels of one node empty: "
                "NVIDIA/nccl-tests issue 74 (A40, EPYC 7302, NPS below 4) and NVIDIA/nccl issues 1285 and 1639 (memory). Filled "
                "in: the rest.")
    host(m, vendor="Supermicro", product="AS -4124GS-TNR", board_vendor="Supermicro", board="H12DSG-O-CPU",
         bios=("2.4", "12/27/2021"), os="Ubuntu 22.04.4 LTS", kernel="5.15.0-105-generic",
         cmdline="BOOT_IMAGE=redacted root=redacted ro iommu=pt", memory_kib=98304000)
    settings(m, balancing="1")
    nodes = {node: (list(range(4 * node, 4 * node + 4)) + list(range(16 + 4 * node, 20 + 4 * node)),
                    0 if node == 3 else 32768000) for node in range(4)}
    cpu(m, model="AMD EPYC 7302 16-Core Processor", nodes=nodes, siblings=smt(16, 16), sockets={0: set(range(32))},
        allowed=[*range(12), *range(16, 28)])
    limits(m, shm=48000 << 20)
    roots = {"01": ("0000:00", 0), "41": ("0000:40", 1), "81": ("0000:80", 2), "c1": ("0000:c0", 3)}
    gpus = {f"0000:{bus}:00.0": gpu("a40", f"pci{root}/{root}:01.1", node) for bus, (root, node) in roots.items()}
    bridges = {f"{root}:01.1": port("1022:1483", node, 4, 16) for root, node in roots.values()}
    pci(m, bridges=bridges, gpus=gpus, others={"0000:00:00.0": "0x060000"}, iommu=(["ivhd0"], "identity", 60))
    driver(m, "550.90.07", "12.4")
    return m


def numa_off():
    m = numa_unknown()
    m.source = ("The two-socket server of NVIDIA/nccl issue 814 with numa=off on its kernel's command line, which gives the flat "
                "tree and numaid -1 of that report. Constructed.")
    m.file("/proc/cmdline", "BOOT_IMAGE=redacted root=redacted ro numa=off")
    m.file("/sys/devices/system/node/online", "0")
    folder = "/sys/devices/system/node/node0"
    m.file(f"{folder}/cpulist", "0-255")
    m.file(f"{folder}/meminfo", "Node 0 MemTotal:       527937536 kB")
    m.file(f"{folder}/distance", "10")
    return m


def old_nccl():
    m = workstation("Two RTX 5090 with the NCCL that PyTorch 2.6 brought: NVIDIA/nccl-tests issue 287 and NVIDIA/nccl issue 1637 "
                    "(2.25.1, `ncclMaxSharedMem 82240 exceeds device/fn maxSharedMem 79856`). Filled in: the rest.", model="5090")
    driver(m, "570.124.06", "12.8", True)
    libraries(m, nccl="2.25.1", cudnn="9.7.1", cublas="12.8.3.14")
    return m


def bad_nccl():
    m = workstation("Two RTX PRO 6000 in a container with NCCL 2.26.2: NVIDIA/nccl issue 2418 (illegal memory access from 512 KiB "
                    "on). Libraries of CUDA 13 on a driver of CUDA 12.8 as in NVIDIA/nvbandwidth issue 61. Constructed.",
                    marks=("/.dockerenv",))
    driver(m, "570.133.20", "12.8", True)
    libraries(m, nccl="2.26.2", cublas="13.0.0.19")
    return m


def bad_driver():
    m = workstation("Two RTX A6000 whose collectives hang with driver 560: dmlc/xgboost issue 11242 (fixed by 570). "
                    "Filled in: the rest.", model="a6000", gen=4)
    driver(m, "560.35.03", "12.6", True)
    return m


def old_driver():
    m = workstation("Two RTX 5090 with the driver of Debian 13, 550, which does not know them: NVIDIA, release notes of driver "
                    "570. Constructed.", model="5090", driver=None)
    m.file("/proc/driver/nvidia/version",
           "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.163.01  Release Build")
    absent = missing(ABSENT, "NVML: the NVIDIA driver is not loaded")
    m.put({"driver": "version"}, absent)
    m.put({"driver": "cuda"}, absent)
    return m


def settings_left():
    m = workstation("Two RTX A6000 with the settings that others advise for hangs (NCCL_P2P_DISABLE, NCCL_SHM_DISABLE: "
                    "NVIDIA/nccl issues 2079 and 290) and NVLS forced (issue 1706), in the environment; a file of the user "
                    "with blanks and a name of old. Constructed.", model="a6000", gen=4)
    settings(m, env=("NCCL_DEBUG=INFO", "NCCL_NVLS_ENABLE=1", "NCCL_P2P_DISABLE=1", "NCCL_SHM_DISABLE=1"),
             user="# mine\nNCCL_P2P_LEVEL = SYS\nNCCL_NCHANNELS_PER_PEER=4\n")
    return m


def slot_x8():
    m = threadripper("Four RTX PRO 6000 on a Pro WS WRX90E-SAGE SE, of which one is in slot 6, wired for Gen5 x8: "
                     "local-inference-lab/rtx6kpro (slot 6). Addresses of the WRX80 workstation. Constructed.",
                     model="pro6000", gen=5)
    m.file("/sys/class/dmi/id/board_name", "Pro WS WRX90E-SAGE SE")
    for address, most in (("0000:40:01.1", True), ("0000:41:00.0", False)):
        m.file(f"{SYS}/{address}/current_link_width", "8")
        if most:
            m.file(f"{SYS}/{address}/max_link_width", "8")
    m.fact("0000:41:00.0", width_now="8", width_max="8")
    driver(m, "595.71.05", "13.2", True)
    return m


def translating():
    m = workstation("Two RTX PRO 6000 under an IOMMU that translates, and no port that redirects: NVIDIA/nccl issue 257 and "
                    "gardenlinux issue 4556 (`iommu=pt` needed for bandwidth). Constructed.",
                    cmdline="BOOT_IMAGE=redacted root=redacted ro quiet splash")
    for group in (0, 20, 21):
        m.file(f"/sys/kernel/iommu_groups/{group}/type", "DMA-FQ")
    return m


def slowed_by_hand_of_the_card():
    m = workstation("Two RTX A6000, one of which slows itself down without a reason, the other was too hot for a while: bits and "
                    "counters of `nvidia-smi -q`, Clocks Event Reasons; NVIDIA/NVSentinel issue 890. Constructed.",
                    model="a6000", gen=4)
    m.fact(FIRST, throttle=str(0x8))
    m.fact(SECOND, hardware_thermal_us="93000000", thermal_us="120000000")
    return m


def channels_empty():
    m = workstation("Two RTX PRO 6000 beside a Threadripper PRO with four modules in eight channels: the maintainer's question in "
                    "NVIDIA/nccl issue 1639. Constructed.")
    slots = [f"DIMM_{name}1|P0 CHANNEL {name}|{65536 if name in 'ACEG' else 0}|{4800 if name in 'ACEG' else 0}"
             for name in "ABCDEFGH"]
    settings(m, slots=slots)
    return m


def cuda_differs():
    m = workstation("Two RTX A6000 whose peer test is waived though the driver's library grants access: NVIDIA/nvbandwidth issue "
                    "45 (the user had to find out why). Constructed.", model="a6000", gen=4)
    for a, b in [(FIRST, SECOND), (SECOND, FIRST)]:
        m.put({"peer": {"from": a, "to": b, "fact": "cuda"}}, "false")
    return m


def tesla_t4():
    return workstation("Two Tesla T4, whose window to their memory is 256 MiB and cannot be wider: in order. Constructed.",
                       model="t4", gen=3)


def answers_garbled():
    m = workstation("Two RTX PRO 6000 whose driver answers nothing sensible about peers and clocks (NVML_ERROR_UNKNOWN): nothing "
                    "is known to be wrong, and nothing to be right. Constructed.")
    said = missing("garbled", "NVML: an unknown error occurred")
    for key, (ask, phase, answer) in list(m.answers.items()):
        if "peer" in ask or ask.get("gpu", {}).get("fact") in ("throttle", "ecc_uncorrected"):
            m.answers[key] = (ask, phase, said)
    return m


MACHINES = {
    "old-nccl": old_nccl, "bad-nccl": bad_nccl, "bad-driver": bad_driver, "old-driver": old_driver,
    "settings-left": settings_left, "slot-x8": slot_x8, "iommu-translating": translating,
    "hardware-slowdown": slowed_by_hand_of_the_card, "channels-empty": channels_empty, "cuda-differs": cuda_differs,
    "tesla-t4": tesla_t4, "answers-garbled": answers_garbled,
    "plain-vm": plain_vm, "threadripper-4gpu": threadripper, "desktop-2gpu-x8": desktop, "server-8gpu": server,
    "chipset-x4": chipset, "chipset-uplink": chipset_uplink, "unprivileged": unprivileged,
    "numa-unknown": numa_unknown, "no-driver": no_driver, "container-64m": container,
    "slow-under-load": slow_under_load, "narrow-link": narrow_link, "vm-passthrough": vm_passthrough,
    "idle-gen1": idle_gen1, "switch-4gpu": switch, "riser-gen3": riser, "bad-riser": bad_riser,
    "acs-redirect": acs_redirect, "bar-256m": small_bar, "lost-gpu": lost_gpu, "mig-on": mig_on, "mixed-cards": mixed,
    "vm-no-p2p": vm_no_p2p, "worn-memory": worn_memory, "hot-and-hungry": hot_and_hungry, "set-by-hand": set_by_hand,
    "odd-links": odd_links, "driver-mismatch": driver_mismatch, "container-no-library": container_without_library,
    "container-one-gpu": container_one_gpu, "closed-module": closed_module, "nvlink-bridge": nvlink,
    "split-socket": split_socket, "numa-off": numa_off,
}

if __name__ == "__main__":
    for name, build in MACHINES.items():
        build().write(name)
