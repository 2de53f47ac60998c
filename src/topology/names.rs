//! Names of the vendors and devices that stand between GPUs and CPUs, from the PCI ID database (pci-ids.ucw.cz,
//! 2026-08-22). What is not here keeps its numbers.

use super::PciId;

/// Vendors by number.
const VENDORS: &[(u16, &str)] = &[
    (0x1000, "Broadcom"),
    (0x1002, "AMD"),
    (0x1022, "AMD"),
    (0x102b, "Matrox"),
    (0x10b5, "PLX"),
    (0x10de, "NVIDIA"),
    (0x11f8, "Microchip"),
    (0x1234, "QEMU"),
    (0x15ad, "VMware"),
    (0x1a03, "ASPEED"),
    (0x1af4, "Red Hat"),
    (0x1b21, "ASMedia"),
    (0x1b36, "Red Hat"),
    (0x8086, "Intel"),
];

/// Devices by vendor and device number.
const DEVICES: &[(u16, u16, &str)] = &[
    (0x1000, 0xc010, "PEX880xx Gen4 switch"),
    (0x1000, 0xc012, "PEX880xx Gen4 switch"),
    (0x1000, 0xc030, "PEX890xx Gen5 switch"),
    (0x1000, 0xc034, "PEX890xx Gen5 switch"),
    (0x1022, 0x1453, "Zen root port"),
    (0x1022, 0x1483, "Zen 2/3 root port"),
    (0x1022, 0x149a, "Zen 2/3 root port"),
    (0x1022, 0x14a5, "Zen 4 root port"),
    (0x1022, 0x14aa, "Zen 4 root port"),
    (0x1022, 0x14ab, "Zen 4 root port"),
    (0x1022, 0x14db, "Ryzen 7000/9000 root port"),
    (0x1022, 0x153e, "Zen 5 root port"),
    (0x1022, 0x1554, "Zen 5 root port"),
    (0x1022, 0x43b4, "300 series chipset port"),
    (0x1022, 0x43c6, "400 series chipset switch"),
    (0x1022, 0x43c7, "400 series chipset port"),
    (0x1022, 0x43e9, "500 series chipset switch"),
    (0x1022, 0x43ea, "500 series chipset port"),
    (0x1022, 0x43f4, "600 series chipset switch"),
    (0x1022, 0x43f5, "600 series chipset port"),
    (0x1022, 0x57ad, "X570 chipset switch"),
    (0x1022, 0x57a3, "X570 chipset port"),
    (0x10b5, 0x8747, "PEX 8747 Gen3 switch"),
    (0x10b5, 0x8796, "PEX 8796 Gen3 switch"),
    (0x10de, 0x1eb8, "Tesla T4"),
    (0x10de, 0x20b2, "A100 SXM4 80GB"),
    (0x10de, 0x20b5, "A100 PCIe 80GB"),
    (0x10de, 0x2204, "GeForce RTX 3090"),
    (0x10de, 0x2203, "GeForce RTX 3090 Ti"),
    (0x10de, 0x2206, "GeForce RTX 3080"),
    (0x10de, 0x2230, "RTX A6000"),
    (0x10de, 0x2231, "RTX A5000"),
    (0x10de, 0x2330, "H100 SXM5 80GB"),
    (0x10de, 0x2331, "H100 PCIe"),
    (0x10de, 0x2335, "H200 SXM 141GB"),
    (0x10de, 0x233b, "H200 NVL"),
    (0x10de, 0x2684, "GeForce RTX 4090"),
    (0x10de, 0x26b1, "RTX 6000 Ada Generation"),
    (0x10de, 0x26b2, "RTX 5000 Ada Generation"),
    (0x10de, 0x26b5, "L40"),
    (0x10de, 0x26b9, "L40S"),
    (0x10de, 0x2704, "GeForce RTX 4080"),
    (0x10de, 0x2901, "B200"),
    (0x10de, 0x2b85, "GeForce RTX 5090"),
    (0x10de, 0x2bb1, "RTX PRO 6000 Blackwell Workstation"),
    (0x10de, 0x2bb3, "RTX PRO 5000 Blackwell"),
    (0x10de, 0x2bb4, "RTX PRO 6000 Blackwell Max-Q"),
    (0x10de, 0x2bb5, "RTX PRO 6000 Blackwell Server"),
    (0x10de, 0x2c02, "GeForce RTX 5080"),
    (0x1234, 0x1111, "QEMU VGA"),
    (0x15ad, 0x0405, "SVGA II"),
    (0x1a03, 0x1150, "AST1150 PCI bridge"),
    (0x1a03, 0x2000, "ASPEED BMC graphics"),
    (0x1af4, 0x1050, "virtio GPU"),
    (0x1b21, 0x2824, "ASM2824 Gen3 switch"),
    (0x1b36, 0x000c, "QEMU root port"),
    (0x8086, 0x460d, "Core 12th gen root port"),
    (0x8086, 0xa70d, "Core 13th/14th gen root port"),
];

/// Bridges of AMD chipsets: ports of the switch inside the chipset.
const AMD_CHIPSET: &[u16] =
    &[0x43b0, 0x43b4, 0x43b1, 0x43c6, 0x43c7, 0x43e9, 0x43ea, 0x43f4, 0x43f5, 0x57a3, 0x57a4, 0x57ad];

/// Root ports of Intel chipsets, from the 100 to the 800 series and their server kin, as ranges of device numbers.
const INTEL_CHIPSET: &[(u16, u16)] = &[
    (0x06b0, 0x06bf),
    (0x1bb0, 0x1bbf),
    (0x43b0, 0x43c7),
    (0x7a30, 0x7a4b),
    (0x7ab0, 0x7acb),
    (0x7f30, 0x7f47),
    (0xa110, 0xa11f),
    (0xa167, 0xa16a),
    (0xa190, 0xa19f),
    (0xa290, 0xa29f),
    (0xa2e7, 0xa2ea),
    (0xa330, 0xa343),
];

pub(super) fn vendor(vendor: u16) -> Option<&'static str> {
    VENDORS.iter().find(|row| row.0 == vendor).map(|row| row.1)
}

pub(super) fn device(id: PciId) -> Option<&'static str> {
    DEVICES.iter().find(|row| (row.0, row.1) == (id.vendor, id.device)).map(|row| row.2)
}

/// Device numbers of NVIDIA GPUs of the Blackwell generation: GB100 and GB20x (PCI ID database). Ada ends below them.
const BLACKWELL: (u16, u16) = (0x2900, 0x2fff);

pub(super) fn is_blackwell(id: PciId) -> bool {
    id.vendor == 0x10de && (BLACKWELL.0..=BLACKWELL.1).contains(&id.device)
}

/// Device numbers of NVIDIA GPUs of Turing (TU10x and TU11x), whose window stays at 256 MiB (PCI ID database).
const TURING: (u16, u16) = (0x1e00, 0x1fff);
const TURING_SMALL: (u16, u16) = (0x2180, 0x21ff);
/// GP100 and GV100, of older ones, have a window of 16 GiB and more.
const WIDE_BEFORE: [(u16, u16); 2] = [(0x15f0, 0x15ff), (0x1db0, 0x1dff)];

pub(super) fn has_wide_window(id: PciId) -> bool {
    let within = |(first, last): (u16, u16)| (first..=last).contains(&id.device);
    match id.vendor {
        0x10de if WIDE_BEFORE.into_iter().any(within) => true,
        0x10de => TURING.1 < id.device && !within(TURING) && !within(TURING_SMALL),
        _ => true,
    }
}

pub(super) fn is_chipset(id: PciId) -> bool {
    match id.vendor {
        0x1022 => AMD_CHIPSET.contains(&id.device),
        0x8086 => INTEL_CHIPSET.iter().any(|(first, last)| (*first..=*last).contains(&id.device)),
        _ => false,
    }
}
