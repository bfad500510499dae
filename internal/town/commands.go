package town

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"gastown/internal/errs"
)

func (t *Town) addRig(now Time, in AddRig) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	if err := t.checkNewRig(in.Rig); err != nil {
		return err
	}
	r := in.Rig
	r.State, r.CreatedAt, r.FetchedAt, r.WriteAt = RigActive, now, now, now
	r.Settings = Settings(nil).merged(in.Rig.Settings, nil)
	t.rigs[r.Name] = &r
	clear(t.limits)
	t.mark(kindRig, r.Name)
	t.log(now, "rig.added", r.Name, by, "target "+r.Target+" at "+short(r.Tip))
	return nil
}

// checkNewRig validates a rig and that its name and prefix are free.
func (t *Town) checkNewRig(r Rig) error {
	if err := ValidName("rig", r.Name); err != nil {
		return err
	}
	if err := ValidPrefix(r.Prefix); err != nil {
		return err
	}
	if err := cleanLine("URL", r.URL, 2000); err != nil {
		return err
	}
	if err := cleanLine("target branch", r.Target, 200); err != nil {
		return err
	}
	if err := CheckGates(r.Gates); err != nil {
		return err
	}
	if err := checkSettings(LevelRig, r.Settings, nil); err != nil {
		return err
	}
	return t.CheckFree(r.Name, r.Prefix)
}

// CheckFree refuses a rig name or prefix that the town uses already.
func (t *Town) CheckFree(name, prefix string) error {
	if t.unreadable(kindRig, name) {
		return errs.New(errs.Conflict, "rig %s exists already and can't be read", name).WithHint("gastown doctor --town %s says why", t.info.Name)
	}
	for _, o := range t.Rigs() {
		if o.Name == name {
			return errs.New(errs.Conflict, "rig %s exists already", name)
		}
		if o.Prefix == prefix {
			return errs.New(errs.Conflict, "prefix %s belongs to rig %s", prefix, o.Name)
		}
	}
	return nil
}

// CheckGates validates the gates of a rig.
func CheckGates(gates []Gate) error {
	if len(gates) > MaxGates {
		return errs.New(errs.Invalid, "too many gates: %d, at most %d", len(gates), MaxGates)
	}
	for i, g := range gates {
		if err := ValidName("gate", g.Name); err != nil {
			return err
		}
		if slices.ContainsFunc(gates[:i], func(o Gate) bool { return o.Name == g.Name }) {
			return errs.New(errs.Invalid, "gate %s is named twice", g.Name)
		}
		if err := cleanText("command of gate "+g.Name, g.Command, 8192); err != nil {
			return err
		}
		if strings.TrimSpace(g.Command) == "" {
			return errs.New(errs.Invalid, "gate %s has no command", g.Name)
		}
		if g.Timeout < 0 || g.Timeout > day {
			return errs.New(errs.Invalid, "time limit of gate %s is not from 0 to %s", g.Name, day)
		}
	}
	return nil
}

func (t *Town) setRig(now Time, in SetRig) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	r := t.rigs[in.Rig]
	if r == nil {
		return noRig(in.Rig)
	}
	if len(in.Allow)+len(in.Deny) > 0 {
		if in.Set, err = t.setHosts(r, in); err != nil {
			return err
		}
	}
	if err := checkSettings(LevelRig, in.Set, in.Unset); err != nil {
		return err
	}
	if in.Gates != nil {
		if err := CheckGates(*in.Gates); err != nil {
			return err
		}
	}
	if err := t.expose(r, now, by, in); err != nil {
		return err
	}
	if in.Gates != nil {
		r.Gates = slices.Clone(*in.Gates)
	}
	r.Settings = r.Settings.merged(in.Set, in.Unset)
	clear(t.limits)
	t.mark(kindRig, r.Name)
	text := settingsText(in.Set, in.Unset)
	if in.Access != "" {
		t.reachAnew(r, now, by, in)
		text = strings.TrimPrefix(text+", "+plain(in.Access, 200), ", ")
	}
	t.log(now, "rig.set", r.Name, by, text)
	return nil
}

// reachAnew forgets what is known of a rig's upstream: it is reached with another
// credential from now on.
func (t *Town) reachAnew(r *Rig, now Time, by string, in SetRig) {
	if in.Secret != nil {
		r.Secret = *in.Secret
	}
	r.FetchedAt, r.WriteAt = 0, 0
	t.dropClaim("rig/" + r.Name + "/fetch") // its answer is about the old one
	for _, kind := range []string{"rig/", "push/", "write/"} {
		t.dropBreaker(now, kind+r.Name, by, in.Access)
	}
}

func settingsText(set Settings, unset []string) string {
	var parts []string
	for _, s := range table {
		if v, ok := set[s.Key]; ok {
			if v != "" && slices.Contains(secretSettings, s.Key) {
				v = hiddenValue
			}
			parts = append(parts, s.Key+"="+clip(v, 100))
		}
		if slices.Contains(unset, s.Key) {
			parts = append(parts, s.Key+" unset")
		}
	}
	return strings.Join(parts, ", ")
}

func (t *Town) dropRig(now Time, in DropRig) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	r := t.rigs[in.Rig]
	if r == nil {
		return noRig(in.Rig)
	}
	if r.State == RigRemoving {
		return nil
	}
	var alive []*Bead
	for _, b := range t.beads {
		if b.Rig != r.Name || b.Status.Terminal() {
			continue
		}
		if err := landing(b); err != nil {
			return err
		}
		alive = append(alive, b)
	}
	if len(alive) > 0 && !in.Force {
		return errs.New(errs.Conflict, "rig %s has %d beads that are not ended", r.Name, len(alive)).
			WithHint("close or cancel them, or remove with --force, which cancels them")
	}
	if n := t.unreadableBeads(r); n > 0 && !in.Force {
		return errs.New(errs.Conflict, "rig %s has %d beads that can't be read", r.Name, n).
			WithHint("gastown doctor --town %s says why; remove with --force to lose their work", t.info.Name)
	}
	slices.SortFunc(alive, func(a, b *Bead) int { return strings.Compare(a.ID, b.ID) })
	for _, b := range alive {
		t.dropBead(b, now, by, "its rig was removed")
	}
	r.State = RigRemoving
	t.mark(kindRig, r.Name)
	t.log(now, "rig.removing", r.Name, by, "")
	return nil
}

// forgetRig drops a rig whose repository is gone, with its ended beads.
func (t *Town) forgetRig(r *Rig, now Time) {
	for _, id := range slices.Sorted(maps.Keys(t.beads)) {
		if b := t.beads[id]; b.Rig == r.Name {
			t.settled(now, id, "", "its rig was removed")
			t.unshelve(b)
			delete(t.beads, id)
			delete(t.ix.dependents, id)
			t.mark(kindBead, id)
		}
	}
	for id, a := range t.agents {
		if a.Rig == r.Name {
			delete(t.agents, id)
			t.mark(kindAgent, id)
		}
	}
	for _, kind := range []string{"rig/", "push/", "write/", "gates/", "hub/"} {
		t.dropBreaker(now, kind+r.Name, "", "the rig was removed")
	}
	delete(t.rigs, r.Name)
	delete(t.ix.ready, r.Name)
	delete(t.ix.review, r.Name)
	t.mark(kindRig, r.Name)
	t.log(now, "rig.removed", r.Name, "", "")
}

func (t *Town) setTown(now Time, in SetTown) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	if err := checkSettings(LevelTown, in.Set, in.Unset); err != nil {
		return err
	}
	t.info.Settings = t.info.Settings.merged(in.Set, in.Unset)
	clear(t.limits)
	t.mark(kindTown, t.info.ID)
	t.log(now, "town.set", t.info.Name, by, settingsText(in.Set, in.Unset))
	return nil
}

func (t *Town) pause(now Time, in Pause) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	mode := ModePaused
	if in.Now {
		mode = ModeSleeping
	}
	if t.info.Mode == mode {
		return nil
	}
	t.setMode(mode, now, by)
	t.info.AwakeFor, t.info.AwakeFrom, t.info.AwakeBy = 0, 0, ""
	return nil
}

func (t *Town) setMode(m Mode, now Time, by string) {
	t.info.Mode, t.info.ModeBy, t.info.ModeAt = m, by, now
	t.mark(kindTown, t.info.ID)
	t.log(now, "town."+string(m), t.info.Name, by, "")
}

// maxAwakeFor bounds "keep awake until".
const maxAwakeFor = 24 * time.Hour

func (t *Town) resume(now Time, in Resume) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	if in.For < 0 || in.For > maxAwakeFor {
		return errs.New(errs.Invalid, "a town can be kept awake for 0s to %s, not %s", maxAwakeFor, in.For)
	}
	if t.info.Mode != ModeActive {
		t.setMode(ModeActive, now, by)
	}
	if in.For > 0 {
		if t.info.AwakeFor <= now {
			t.info.AwakeFrom = now
		}
		t.info.AwakeFor, t.info.AwakeBy = now.Add(in.For), by
		t.mark(kindTown, t.info.ID)
		t.log(now, "town.kept_awake", t.info.Name, by, "until "+t.info.AwakeFor.String())
	}
	return nil
}

// refreshToken asks for a renewal before its time. An asleep sandbox has no
// token that anybody uses.
func (t *Town) refreshToken(now Time, in RefreshToken) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	s := &t.info.Sandbox
	if s.State != SandboxAwake {
		return errs.New(errs.Conflict, "the sandbox of town %s is %s: it has no token to renew, and nothing was done", t.info.Name, s.State).
			WithHint("it gets a new token when it starts")
	}
	s.RenewAsked = true
	t.mark(kindTown, t.info.ID)
	t.log(now, "token.asked", t.info.Name, by, "")
	return nil
}

func (t *Town) deleteTown(now Time, in DeleteTown) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	if t.info.Mode == ModeDeleting {
		return nil
	}
	t.setMode(ModeDeleting, now, by)
	t.info.AwakeFor = 0
	for _, r := range t.sortedRuns() {
		t.stopRun(r, now, "the town is being deleted")
	}
	return nil
}

// retry resets what ID names: a breaker, a bead's backoff, an escalation's
// subject, or a dead notice.
func (t *Town) retry(now Time, in Retry) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	if br := t.breakers[in.ID]; br != nil {
		delete(t.breakers, in.ID)
		t.mark(kindBreaker, in.ID)
		t.log(now, "breaker.reset", in.ID, by, "")
		t.settled(now, in.ID, by, "reset by "+by)
		return nil
	}
	if preset, ok := strings.CutPrefix(in.ID, "agent/"); ok && t.agentThere(preset) {
		t.log(now, "agent.retried", in.ID, by, "")
		return nil
	}
	if b := t.beads[in.ID]; b != nil {
		if b.Status == BeadClosed { // a slip would do work again that is merged
			return errs.New(errs.Conflict, "bead %s is closed: there is nothing to retry", b.ID).WithHint("to have it done again: gastown bead reopen %s", b.ID)
		}
		if b.Status.Terminal() || b.Escalated {
			return t.reopenBead(now, ReopenBead{By: by, Bead: b.ID})
		}
		t.settled(now, b.ID, by, "retried by "+by)
		t.edit(b, now, func() { b.NotBefore = 0 })
		if b.Merge != nil && b.Merge.State == MergeWaiting {
			t.edit(b, now, func() { b.Merge.Asked = true })
		}
		t.dropBreaker(now, "merge/"+b.ID, by, "retried by "+by)
		t.log(now, "bead.retried", b.ID, by, "")
		return nil
	}
	if e := t.escalations[in.ID]; e != nil {
		return t.retryEscalation(now, by, e)
	}
	if id, err := strconv.ParseInt(strings.TrimPrefix(in.ID, "notice/"), 10, 64); err == nil && t.notices[id] != nil {
		n := t.notices[id]
		n.Tries, n.Next, n.Dead = 0, 0, false
		t.mark(kindNotice, strconv.FormatInt(id, 10))
		t.log(now, "notice.retried", in.ID, by, "")
		return nil
	}
	return errs.New(errs.NotFound, "there is nothing called %s to retry", clip(in.ID, 60)).
		WithHint("gastown why %s names breakers and beads that wait", t.info.Name)
}
