//! Calls that are many calls in one: the first argument or the second says which.

use super::evaluate::Evaluation;
use super::table::{Item, SIGINFO};
use super::{Process, Why, Written};

impl<P: Process + ?Sized, F: FnMut(Written)> Evaluation<'_, P, F> {
    pub(super) fn control(&mut self, item: Item) {
        match item {
            Item::Shmctl => self.shmctl(),
            Item::Semctl => self.semctl(),
            Item::Msgctl => self.msgctl(),
            // `msgrcv(queue, message, bytes, ...)`: a `long` for the type, then the text.
            Item::Msgrcv => self.stored(self.arg(1).saturating_add(8), self.arg(2)),
            Item::Prctl => self.prctl(),
            Item::ArchPrctl => self.arch_prctl(self.int(0), self.arg(1)),
            Item::Ptrace => self.ptrace(),
            Item::Keyctl => self.keyctl(),
            // SECCOMP_GET_NOTIF_SIZES is 3; the three operations before it write nothing.
            Item::Seccomp => match self.int(0) {
                0..=2 => {}
                3 => self.stored(self.arg(2), 6),
                _ => self.unknown(Why::UnknownOperation),
            },
            _ => {}
        }
    }

    /// `shmctl(id, command, buffer)`.
    fn shmctl(&mut self) {
        let bytes = match self.int(1) {
            // IPC_STAT, SHM_STAT, SHM_STAT_ANY: shmid64_ds. IPC_INFO: shminfo64. SHM_INFO.
            2 | 13 | 15 => 112,
            3 => 72,
            14 => 48,
            // IPC_RMID, IPC_SET, SHM_LOCK, SHM_UNLOCK.
            0 | 1 | 11 | 12 => 0,
            _ => return self.unknown(Why::UnknownOperation),
        };
        self.stored(self.arg(2), bytes);
    }

    /// `semctl(id, number, command, union)`.
    fn semctl(&mut self) {
        let bytes = match self.int(2) {
            // IPC_STAT, SEM_STAT, SEM_STAT_ANY: semid64_ds. IPC_INFO, SEM_INFO: seminfo.
            2 | 18 | 20 => 104,
            3 | 19 => 40,
            // GETALL: as many numbers as the set has semaphores.
            13 => return self.unknown(Why::SizeUnknown),
            // IPC_RMID, IPC_SET, GETPID, GETVAL, GETNCNT, GETZCNT, SETVAL, SETALL.
            0 | 1 | 11 | 12 | 14..=17 => 0,
            _ => return self.unknown(Why::UnknownOperation),
        };
        self.stored(self.arg(3), bytes);
    }

    /// `msgctl(id, command, buffer)`.
    fn msgctl(&mut self) {
        let bytes = match self.int(1) {
            // IPC_STAT, MSG_STAT, MSG_STAT_ANY: msqid64_ds. IPC_INFO, MSG_INFO: msginfo.
            2 | 11 | 13 => 120,
            3 | 12 => 32,
            0 | 1 => 0,
            _ => return self.unknown(Why::UnknownOperation),
        };
        self.stored(self.arg(2), bytes);
    }

    /// `prctl(option, ...)`. Security modules may answer options too; those of Linux 6.12 write nothing.
    fn prctl(&mut self) {
        const PR_SET_MM: i32 = 35;
        const PR_SET_MM_MAP_SIZE: u64 = 15;
        const PR_SCHED_CORE: i32 = 62;
        const PR_SET_VMA: i32 = 0x5356_4d41;
        const PR_SET_PTRACER: i32 = 0x5961_6d61;
        const PR_GET_AUXV: i32 = 0x4155_5856;
        match self.int(0) {
            // GET_PDEATHSIG, GET_UNALIGN, GET_FPEMU, GET_FPEXC, GET_ENDIAN, GET_TSC,
            // GET_CHILD_SUBREAPER.
            2 | 5 | 9 | 11 | 19 | 25 | 37 => self.stored(self.arg(1), 4),
            // GET_NAME.
            16 => self.stored(self.arg(1), 16),
            // GET_TID_ADDRESS.
            40 => self.stored(self.arg(1), 8),
            PR_SET_MM if self.arg(1) == PR_SET_MM_MAP_SIZE => self.stored(self.arg(2), 4),
            PR_SCHED_CORE => self.stored(self.arg(4), 8),
            PR_GET_AUXV => self.stored(self.arg(1), self.arg(2)),
            // All others up to PPC_SET_DEXCR.
            0..=73 | PR_SET_VMA | PR_SET_PTRACER => {}
            _ => self.unknown(Why::UnknownOperation),
        }
    }

    /// `arch_prctl(option, address)`, also by way of `ptrace`.
    fn arch_prctl(&mut self, option: i32, address: u64) {
        match option {
            // GET_FS, GET_GS, GET_XCOMP_SUPP, _PERM, _GUEST_PERM, GET_UNTAG_MASK, GET_MAX_TAG_BITS,
            // SHSTK_STATUS.
            0x1003 | 0x1004 | 0x1021 | 0x1022 | 0x1024 | 0x4001 | 0x4003 | 0x5005 => {
                self.stored(address, 8);
            }
            // SET_GS, SET_FS, GET_CPUID, SET_CPUID, REQ_XCOMP_PERM, REQ_XCOMP_GUEST_PERM,
            // ENABLE_TAGGED_ADDR, FORCE_TAGGED_SVA, SHSTK_LOCK, SHSTK_UNLOCK.
            0x1001 | 0x1002 | 0x1011 | 0x1012 | 0x1023 | 0x1025 | 0x4002 | 0x4004 | 0x5003
            | 0x5004 => {}
            // MAP_VDSO_*, SHSTK_ENABLE and _DISABLE map and unmap pages at addresses of the kernel's.
            _ => self.unknown(Why::UnknownOperation),
        }
    }

    /// `ptrace(request, pid, address, data)`. A request that writes to the tracee writes to this memory
    /// if the tracee shares it.
    fn ptrace(&mut self) {
        const BPF_MAXINSNS: u64 = 4096;
        let (address, data) = (self.arg(2), self.arg(3));
        match self.arg(0) {
            // PEEKTEXT, PEEKDATA, PEEKUSR, GETEVENTMSG, GETSIGMASK.
            1..=3 | 0x4201 | 0x420a => self.stored(data, 8),
            // POKETEXT, POKEDATA.
            4 | 5 => self.stored(address, 8),
            // GETREGS, GETFPREGS, GET_THREAD_AREA, GETSIGINFO.
            12 => self.stored(data, 216),
            14 => self.stored(data, 512),
            25 => self.stored(data, 16),
            0x4202 => self.stored(data, SIGINFO.into()),
            // ARCH_PRCTL has its arguments the other way round.
            30 => self.arch_prctl(data as i32, address),
            // GETREGSET: the length of the vector is stored too.
            0x4204 => {
                self.stored(data, 16);
                self.iovec(data, 1, |this, base, len| this.stored(base, len));
            }
            0x4205 => self.stored(data, 16),
            // PEEKSIGINFO: its arguments are an offset, flags and the number.
            0x4209 => {
                let Some(number) = self.u32_at(address.saturating_add(12)) else { return };
                let number = u64::try_from(number as i32).unwrap_or(0);
                self.stored(data, number * u64::from(SIGINFO));
            }
            // SECCOMP_GET_FILTER: no filter has more instructions.
            0x420c => self.stored(data, BPF_MAXINSNS * 8),
            // SECCOMP_GET_METADATA, GET_SYSCALL_INFO, GET_RSEQ_CONFIGURATION,
            // GET_SYSCALL_USER_DISPATCH_CONFIG: the size is in `address`.
            0x420d | 0x420e | 0x420f | 0x4211 => self.stored(data, address),
            // TRACEME, POKEUSR to SINGLESTEP, SETREGS, SETFPREGS, ATTACH, DETACH, OLDSETOPTIONS,
            // SYSCALL, SET_THREAD_AREA, SYSEMU to SINGLEBLOCK, SETOPTIONS, SETSIGINFO, SEIZE to
            // LISTEN, SETSIGMASK, SET_SYSCALL_USER_DISPATCH_CONFIG.
            0
            | 6..=9
            | 13
            | 15..=17
            | 21
            | 24
            | 26
            | 31..=33
            | 0x4200
            | 0x4203
            | 0x4206..=0x4208
            | 0x420b
            | 0x4210 => {}
            _ => self.unknown(Why::UnknownOperation),
        }
    }

    /// `keyctl(operation, ...)`.
    fn keyctl(&mut self) {
        match self.int(0) {
            // DESCRIBE, READ, GET_SECURITY, DH_COMPUTE.
            6 => self.stored(self.arg(2), u64::from(self.arg(3) as u32)),
            11 | 17 | 23 => self.stored(self.arg(2), self.arg(3)),
            // PKEY_QUERY.
            24 => self.stored(self.arg(4), 64),
            // PKEY_ENCRYPT, _DECRYPT, _SIGN: the parameters have the size of the output.
            25..=27 => {
                let Some(len) = self.u32_at(self.arg(1).saturating_add(8)) else { return };
                self.stored(self.arg(4), len.into());
            }
            // CAPABILITIES.
            31 => self.stored(self.arg(1), self.arg(2)),
            0..=33 => {}
            _ => self.unknown(Why::UnknownOperation),
        }
    }
}
