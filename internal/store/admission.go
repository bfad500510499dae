package store

// Decide is the rule of admission: a town is let in when a place is left for it
// after those ahead of it in the queue had theirs. It is one function so that all
// implementations agree.
func Decide(held SlotCounts, ahead int, l Limits) Admission {
	free := ahead + 1
	if l.MaxAwake > 0 {
		free = min(free, l.MaxAwake-held.Starting-held.Awake)
	}
	if l.MaxStarting > 0 {
		free = min(free, l.MaxStarting-held.Starting)
	}
	if ahead < free {
		return Admission{Granted: true}
	}
	return Admission{Position: ahead + 1}
}
