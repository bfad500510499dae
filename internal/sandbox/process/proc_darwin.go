package process

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

func bootID() (string, error) { return unix.Sysctl("kern.bootsessionuuid") }

// processes lists all processes.
func processes() ([]proc, error) {
	infos, err := unix.SysctlKinfoProcSlice("kern.proc.all")
	if err != nil {
		return nil, err
	}
	procs := make([]proc, 0, len(infos))
	for i := range infos {
		procs = append(procs, describe(&infos[i]))
	}
	return procs, nil
}

// lookup describes one process.
func lookup(pid int) (p proc, found bool, err error) {
	infos, err := unix.SysctlKinfoProcSlice("kern.proc.pid", pid)
	if errors.Is(err, syscall.ESRCH) {
		return proc{}, false, nil
	}
	if err != nil || len(infos) == 0 || int(infos[0].Proc.P_pid) != pid {
		return proc{}, false, err
	}
	return describe(&infos[0]), true, nil
}

func describe(k *unix.KinfoProc) proc {
	const stateZombie = 5 // SZOMB in <sys/proc.h>
	p := proc{
		pid:    int(k.Proc.P_pid),
		ppid:   int(k.Eproc.Ppid),
		start:  fmt.Sprintf("%d.%06d", k.Proc.P_starttime.Sec, k.Proc.P_starttime.Usec),
		zombie: k.Proc.P_stat == stateZombie,
	}
	// A process that ended meanwhile belongs to no session.
	if sid, err := unix.Getsid(p.pid); err == nil {
		p.sid = sid
	}
	return p
}

// environOf returns the environment that a process was started with, nil when
// the system does not show it. The raw form is argc, the program's path, padding,
// the arguments and then the environment, each ended by a zero byte.
func environOf(pid int) []byte {
	raw, err := unix.SysctlRaw("kern.procargs2", pid)
	if err != nil || len(raw) < 4 {
		return nil
	}
	argc := int(binary.LittleEndian.Uint32(raw))
	raw = raw[4:]
	i := bytes.IndexByte(raw, 0)
	if i < 0 {
		return nil
	}
	raw = bytes.TrimLeft(raw[i:], "\x00")
	for ; argc > 0; argc-- {
		i := bytes.IndexByte(raw, 0)
		if i < 0 {
			return nil
		}
		raw = raw[i+1:]
	}
	return raw
}

// cwdOf is not known without cgo.
func cwdOf(int) string { return "" }

// awaitExit does nothing: a child can't be left a zombie here, so its leftovers
// are found by marker and descent only.
func awaitExit(int) {}
