#!/usr/bin/env python3
"""Writes the recorded machines: tests/machines/<name>/machine.jsonl, from compact descriptions.

Each description names its source. Facts are transcribed from what owners published; what a source does not tell is
filled in with what the same kernel shows on such hardware, and the source line says so. Run it after a change of the
questions that the probe asks, then `RIGSCALE_BLESS=1 cargo test --test probe`, and read the diff.
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
RATE = {1: "2.5", 2: "5.0", 3: "8.0", 4: "16.0", 5: "32.0"}


def missing(why, detail=""):
    return {"missing": why, **({"detail": detail} if detail else {})}


class Machine:
    """Questions and answers of one machine, in order."""

    def __init__(self, source):
        self.source = source
        self.answers = {}

    def put(self, ask, answer, phase="at_rest"):
        self.answers[(json.dumps(ask, sort_keys=True), phase)] = (ask, phase, answer)

    def file(self, path, text, phase="at_rest"):
        answer = missing(text, path) if text in (ABSENT, DENIED, UNSUPPORTED) else text + "\n"
        self.put({"file": path}, answer, phase)

    def write(self, name):
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        head = {"capture": 1, "rigscale": "0.1.0", "redacted": True, "source": self.source}
        lines = [head]
        for ask, phase, answer in self.answers.values():
            lines.append({"ask": ask, **({"phase": phase} if phase != "at_rest" else {}), "answer": answer})
        lines.append({"answers": len(lines) - 1})
        text = "".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n" for line in lines)
        (folder / "machine.jsonl").write_text(text)


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
            for fact in GPU_FACTS:
                absent = missing(ABSENT, "NVML: libnvidia-ml.so.1 cannot be loaded")
                m.put({"gpu": {"at": address, "fact": fact}}, nvml.get(fact, absent))
    for address, (ids, node, link) in bridges.items():
        device(m, address, ids, node, link)
    m.put({"folder": "/sys/class/iommu"}, units)
    m.put({"folder": "/sys/kernel/iommu_groups"}, [str(group) for group in range(groups)])
    if groups:
        m.file("/sys/kernel/iommu_groups/0/type", domain)


def driver(m, version=None, cuda=None, open_module=False):
    kind = "NVIDIA UNIX Open Kernel Module for x86_64" if open_module else "NVIDIA UNIX x86_64 Kernel Module"
    m.file("/proc/driver/nvidia/version", f"NVRM version: {kind}  {version}  Release Build" if version else ABSENT)
    absent = missing(ABSENT, "NVML: libnvidia-ml.so.1 cannot be loaded")
    m.put({"driver": "version"}, version or absent)
    m.put({"driver": "cuda"}, cuda or absent)


MODELS = {
    # name, memory MiB, BAR1 MiB, capability, PCI ids, generation, power default, min, max W, ECC and MIG known
    "3090": ("NVIDIA GeForce RTX 3090", 24576, 256, "8.6", "10de:2204", 4, 350, 100, 350),
    "3080": ("NVIDIA GeForce RTX 3080", 20480, 256, "8.6", "10de:2206", 4, 320, 100, 320),
    "4090": ("NVIDIA GeForce RTX 4090", 24564, 32768, "8.9", "10de:2684", 4, 450, 150, 600),
    "5090": ("NVIDIA GeForce RTX 5090", 32607, 32768, "12.0", "10de:2b85", 5, 575, 400, 600),
    "a6000": ("NVIDIA RTX A6000", 49140, 65536, "8.6", "10de:2230", 4, 300, 100, 300),
    "pro6000": ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887, 131072, "12.0", "10de:2bb1", 5, 600, 150, 600),
    "pro6000s": ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887, 131072, "12.0", "10de:2bb5", 5, 600, 300, 600),
}


def gpu(model, path, node, *, width=16, slot_gen=None, slot_width=16, driver="nvidia", now=1, vbios="redacted"):
    name, mib, bar1, capability, ids, gen, default, low, high = MODELS[model]
    mig = {"pro6000": "false", "pro6000s": "false"}.get(model, missing(UNSUPPORTED, "NVML: the requested operation is "
                                                                       "not available on the target device"))
    facts = [name, str(mib << 20), str(bar1 << 20), capability, vbios, str(default * 1000), str(default * 1000),
             str(low * 1000), str(high * 1000), str(now), str(width), str(min(gen, slot_gen or gen)),
             str(min(16, slot_width)), "8", "true", mig]
    return {
        "class": "0x030200" if model == "pro6000s" else "0x030000",
        "ids": ids, "path": path, "node": node, "link": (now, gen, width, 16), "driver": driver,
        "nvml": dict(zip(GPU_FACTS, facts)) if driver == "nvidia" else None,
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
                "CPU (a Threadripper PRO 3975WX on a Pro WS WRX80E-SAGE SE WIFI), performance governor, iommu=pt.")
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
    driver(m, "595.58.03", "13.2")
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
    return m


def slow_under_load():
    m = threadripper("Four RTX PRO 6000 of which one stays at Gen2 x16 while it trains, as in local-inference-lab/rtx6kpro "
                     "pull request 88. Board and CPU of the WRX80 workstation with Gen5 slots instead. Constructed.",
                     model="pro6000", gen=5)
    m.file("/sys/class/dmi/id/board_name", "Pro WS WRX90E-SAGE SE")
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
    return m


MACHINES = {
    "plain-vm": plain_vm, "threadripper-4gpu": threadripper, "desktop-2gpu-x8": desktop, "server-8gpu": server,
    "chipset-x4": chipset, "chipset-uplink": chipset_uplink, "unprivileged": unprivileged,
    "numa-unknown": numa_unknown, "no-driver": no_driver, "container-64m": container,
    "slow-under-load": slow_under_load, "narrow-link": narrow_link, "vm-passthrough": vm_passthrough,
}

if __name__ == "__main__":
    for name, build in MACHINES.items():
        build().write(name)
