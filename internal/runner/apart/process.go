package apart

import (
	"cmp"
	"slices"
)

// Process is a process as one look at all of them found it.
type Process struct {
	PID, Parent int
	Born        int64 // clock ticks after the start of the machine
	UID         int
	Name        string
	Memory      int64 // bytes that are resident, without what is mapped from files
	Threads     int
}

// descend returns the processes that begin says yes to, and all below them.
func descend(all []Process, begin func(Process) bool) []Process {
	children := map[int][]Process{}
	in := map[int]bool{}
	var mine []Process
	for _, p := range all {
		children[p.Parent] = append(children[p.Parent], p)
		if begin(p) {
			in[p.PID] = true
			mine = append(mine, p)
		}
	}
	for i := 0; i < len(mine); i++ {
		for _, c := range children[mine[i].PID] {
			if !in[c.PID] {
				in[c.PID] = true
				mine = append(mine, c)
			}
		}
	}
	slices.SortFunc(mine, func(a, b Process) int { return cmp.Compare(a.PID, b.PID) })
	return mine
}

// Below returns p, which is one of all, and what descends from it.
func Below(all []Process, p Process) []Process {
	return descend(all, func(q Process) bool { return q.PID == p.PID })
}
