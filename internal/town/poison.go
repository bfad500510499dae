package town

// Poison is a report of a sandbox that could not be taken. Its number counts as
// used, so that the sender goes on with the next one.
type Poison struct {
	At         Time   `json:"at"`
	Generation int64  `json:"generation"`
	N          int64  `json:"n"` // number of the report in its stream
	What       string `json:"what"`
}

const (
	maxPoison = 20 // kept of a town, the newest last
	// MaxReport is how large one report may be, in bytes.
	MaxReport = 256 << 10
	// maxLives is how many runs one heartbeat may speak of.
	maxLives = 10_000
)

// Poisoned returns the latest reports that could not be taken, and how many
// there ever were.
func (t *Town) Poisoned() (latest []Poison, total int64) { return t.info.Poison, t.info.PoisonN }

// poison records a report that can't be taken. Anything in a sandbox may send
// such without end: the list is bounded, and the ledger tells of the first of a
// generation only.
func (t *Town) poison(now Time, generation, n int64, what string) {
	s := &t.info.Sandbox
	if !s.Unknown {
		s.Unknown = true
		t.log(now, "report.unknown", t.info.Name, "", plain(what, 300)+"; it was ignored, as are others like it")
	}
	t.info.PoisonN++
	list := append(append([]Poison(nil), t.info.Poison...), Poison{At: now, Generation: generation, N: n, What: plain(what, 300)})
	t.info.Poison = list[max(0, len(list)-maxPoison):]
	t.mark(kindTown, t.info.ID)
}

// maxRefusals is how often the evidence of one run may be refused: an agent that
// says done again and again would go on for ever.
const maxRefusals = 20

// refused counts what an agent called done and the server found not to be. The
// refusal itself was the answer to the agent; this ends it.
func (t *Town) refused(now Time, in Refused) error {
	if err := t.current(in.Generation); err != nil {
		return err
	}
	r := t.runs[in.Run]
	if r == nil || r.Epoch != in.Epoch || r.Generation != in.Generation || r.State == RunDraining {
		return nil
	}
	r.Refused++
	r.RefusedWhy = plain(in.Why, 500)
	t.mark(kindRun, r.ID)
	t.log(now, "run.refused", r.ID, r.Agent, plain(in.Why, 500), "bead", r.Bead)
	if r.Refused >= maxRefusals {
		t.stopRun(r, now, stopRefused)
	}
	return nil
}
