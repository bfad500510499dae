package doctor

import (
	"context"
	"fmt"
	"slices"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/sandbox"
	"gastown/internal/store"
	"gastown/internal/town"
)

const stopGrace = 10 * time.Second

// sandboxes compares what runs with what towns count on. What seems wrong is
// looked at again after a pause, since starts and ends take a moment.
func (l *look) sandboxes(ctx context.Context) error {
	l.phase("sandboxes", 0)
	all, err := l.cfg.Driver.List(ctx)
	if err != nil {
		return errs.Wrap(errs.KindOf(err), err, "asking the driver for its sandboxes")
	}
	var suspects []sandbox.Ref
	runs := map[string]bool{}
	for _, st := range all {
		k, exists := l.towns[st.Ref.Town]
		if l.o.Town != "" && st.Ref.Town != l.o.Town {
			continue
		}
		runs[st.Ref.Town] = runs[st.Ref.Town] || st.State != sandbox.Gone
		if !exists || st.State == sandbox.Running && !(k.generation == st.Ref.Generation && k.sandbox.Running()) {
			suspects = append(suspects, st.Ref)
		}
	}
	var lost []string
	for id, k := range l.towns {
		if !runs[id] && counted(k.sandbox) {
			lost = append(lost, id)
		}
	}
	if len(suspects)+len(lost) == 0 {
		return nil
	}
	if err := l.cfg.Pause(ctx); err != nil {
		return err
	}
	for _, ref := range suspects {
		if err := l.orphan(ctx, ref); err != nil {
			return err
		}
	}
	for _, id := range lost {
		if err := l.lost(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// counted reports whether the driver must know a sandbox in this state.
func counted(s town.SandboxState) bool { return s == town.SandboxAwake || s == town.SandboxDraining }

func (l *look) orphan(ctx context.Context, ref sandbox.Ref) error {
	head, err := l.cfg.Store.Head(ctx, ref.Town)
	if errs.Is(err, errs.NotFound) {
		f := l.problem("", "sandbox.orphan", ref.Town, fmt.Sprintf("there is a sandbox or disk of generation %d, and no such town", ref.Generation),
			"it may cost money, and nobody will ever use it", "it is removed with its disk")
		f.fix = func(ctx context.Context) (string, error) {
			return "removed the sandbox and disk of a town that does not exist", l.cfg.Driver.Remove(ctx, sandbox.Ref{Driver: ref.Driver, Town: ref.Town})
		}
		l.add(f)
		return nil
	}
	if err != nil {
		return err
	}
	st, err := l.cfg.Driver.Inspect(ctx, ref)
	if err != nil || st.State != sandbox.Running || head.Generation == ref.Generation && town.SandboxState(head.Sandbox).Running() {
		return nil // it ended, or is the town's by now, or the driver can't say
	}
	f := l.problem(ref.Town, "sandbox.orphan", fmt.Sprintf("%s/%d", ref.Town, ref.Generation), fmt.Sprintf("generation %d of the sandbox runs, and the town is %s with generation %d", ref.Generation, head.Sandbox, head.Generation),
		"it costs money and is heard by nobody", "it is stopped")
	f.fix = func(ctx context.Context) (string, error) {
		return fmt.Sprintf("stopped generation %d of the sandbox, which the town did not own", ref.Generation), l.cfg.Driver.Stop(ctx, ref, stopGrace)
	}
	l.add(f)
	return nil
}

func (l *look) lost(ctx context.Context, id string) error {
	head, err := l.cfg.Store.Head(ctx, id)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	ref := sandbox.Ref{Town: id, Generation: head.Generation}
	st, err := l.cfg.Driver.Inspect(ctx, ref)
	if err != nil || st.State != sandbox.Gone || !counted(town.SandboxState(head.Sandbox)) {
		return nil
	}
	f := l.problem(id, "sandbox.missing", fmt.Sprintf("%s/%d", id, head.Generation), "the town counts on its sandbox, which is gone: "+st.Reason,
		"its runs do nothing until their leases end", "the town is told")
	f.fix = func(ctx context.Context) (string, error) {
		return "told the town that its sandbox is gone", l.cfg.Hall.Do(ctx, id, town.SandboxExited{Generation: head.Generation, Reason: "found gone by an examination"})
	}
	l.add(f)
	return nil
}

// slots compares the places that are taken with the sandboxes that take them.
func (l *look) slots(ctx context.Context) error {
	slots, err := l.cfg.Store.Slots(ctx)
	if err != nil {
		return err
	}
	has := map[string]bool{}
	old := l.began.Add(-late).UnixMilli()
	for _, s := range slots {
		has[s.Town] = s.State != store.SlotWaiting
		k, exists := l.towns[s.Town]
		switch {
		case l.o.Town != "" && s.Town != l.o.Town:
		case !exists && l.o.Town == "":
			l.add(l.problem("", "slot.orphan", s.Town, "a town that does not exist holds a place", "one sandbox fewer may run", "restart the server; if it stays, restore a backup"))
		case exists && k.sandbox == town.SandboxAsleep && max(s.At, s.Seen) < old:
			f := l.problem(s.Town, "slot.orphan", k.name, "it sleeps and holds a place", "one sandbox fewer may run", "the place is given back")
			f.mend = true
			l.add(f)
		}
	}
	for id, k := range l.towns {
		if counted(k.sandbox) && !has[id] {
			f := l.problem(id, "slot.missing", k.name, "its sandbox runs and holds no place", "one sandbox more than allowed may run", "a place is noted for it")
			f.mend, f.noSlot = true, true
			l.add(f)
		}
	}
	return nil
}

// rigs finds rigs whose repository is gone.
func (l *look) rigs(ctx context.Context) error {
	l.phase("repositories", 0)
	ids, err := l.cfg.Hub.List()
	if err != nil {
		return err
	}
	l.repos = ids
	there := make(map[hub.ID]bool, len(ids))
	for _, id := range ids {
		there[id] = true
	}
	var missing []store.RigIndex
	lastTown, lastRig := "", ""
	for {
		rigs, err := l.cfg.Store.AllRigs(ctx, lastTown, lastRig, page)
		if err != nil {
			return err
		}
		for _, r := range rigs {
			lastTown, lastRig = r.Town, r.Rig
			if !there[hub.ID{Town: r.Town, Rig: r.Rig}] && (l.o.Town == "" || l.o.Town == r.Town) {
				missing = append(missing, r)
			}
		}
		if len(rigs) < page {
			return l.empty(ctx, missing)
		}
	}
}

// empty looks again at rigs whose repository was not there: one may have been
// added since.
func (l *look) empty(ctx context.Context, missing []store.RigIndex) error {
	if len(missing) == 0 {
		return nil
	}
	ids, err := l.cfg.Hub.List()
	if err != nil {
		return err
	}
	for _, r := range missing {
		if !slices.Contains(ids, hub.ID{Town: r.Town, Rig: r.Rig}) && !l.leaving(ctx, r) {
			l.add(l.problem(r.Town, "rig.empty", r.Rig, "its repository is gone from the server", "work on the rig fails, and commits that were not pushed upstream are lost", "restore the hub's directory from a backup, or remove the rig and add it anew"))
		}
	}
	return nil
}

// leaving reports whether a rig is being removed, or its town.
func (l *look) leaving(ctx context.Context, r store.RigIndex) bool {
	gone := false
	err := l.cfg.Hall.View(ctx, r.Town, func(t *town.Town, _ time.Time) error {
		rig, ok := t.Rig(r.Rig)
		gone = ok && rig.State == town.RigRemoving || t.Info().Mode == town.ModeDeleting || !ok && !unreadable(t, r.Rig)
		return nil
	})
	return gone || errs.Is(err, errs.NotFound)
}

func unreadable(t *town.Town, rig string) bool {
	for _, q := range t.Quarantined() {
		if q.Kind == "rig" && q.ID == rig {
			return true
		}
	}
	return false
}

// repositories finds references of beads that are ended or never were.
func (l *look) repositories(ctx context.Context) error {
	ids := l.repos
	if l.o.Town != "" {
		ids = slices.DeleteFunc(ids, func(id hub.ID) bool { return id.Town != l.o.Town })
	}
	l.phase("references", len(ids))
	for _, id := range ids {
		l.step(1)
		if _, exists := l.towns[id.Town]; !exists {
			continue // the sweep removes it; a rig being added has one before its time
		}
		l.rep.Repositories++
		refs, err := l.cfg.Hub.BeadRefs(ctx, id)
		if err == nil && len(refs) > 0 {
			err = l.references(ctx, id, refs)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !(errs.Is(err, errs.NotFound) && l.leaving(ctx, store.RigIndex{Town: id.Town, Rig: id.Rig})) {
			l.add(l.problem(id.Town, "rig.unreadable", id.Rig, "its repository can't be read: "+oneLine(err), "work on the rig fails", "the server's log says more; restore the hub's directory from a backup"))
		}
	}
	return nil
}

// references compares those of one repository with its town's beads, which are
// read after them: a bead that has just begun is known.
func (l *look) references(ctx context.Context, id hub.ID, refs []hub.BeadRef) error {
	branches, stale := map[string][]string{}, map[string]bool{}
	err := l.cfg.Hall.View(ctx, id.Town, func(t *town.Town, _ time.Time) error {
		for _, r := range refs {
			if _, wanted := t.Refs(id.Rig, r.Bead); wanted {
				continue
			}
			stale[r.Bead] = true
			if r.Branch != "" {
				branches[r.Bead] = append(branches[r.Bead], r.Branch)
			}
		}
		return nil
	})
	if err != nil {
		if errs.Is(err, errs.Internal) {
			return nil // the town can't be read, which is said elsewhere: nobody knows what it needs
		}
		return err
	}
	for _, r := range refs {
		if !stale[r.Bead] {
			continue
		}
		delete(stale, r.Bead) // once per bead
		f := l.problem(id.Town, "ref.orphan", id.Rig+" "+r.Bead, "the repository holds references of the bead, which is ended or never was", "they keep objects from being removed", "they are deleted")
		f.fix = func(ctx context.Context) (string, error) {
			wanted := false
			err := l.cfg.Hall.View(ctx, id.Town, func(t *town.Town, _ time.Time) error {
				_, wanted = t.Refs(id.Rig, r.Bead)
				return nil
			})
			if err != nil || wanted { // reopened since it was looked at
				return "left the references of bead " + r.Bead + ": it is wanted again", err
			}
			return "deleted the references of bead " + r.Bead + " in rig " + id.Rig, l.cfg.Hub.DropBead(ctx, id, r.Bead, branches[r.Bead]...)
		}
		l.add(f)
	}
	return nil
}
