package hall

import (
	"context"
	"encoding/json"
	"maps"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/town"
)

const (
	straysEach  = 24 * time.Hour // between two looks at one repository
	straysBatch = 16             // repositories per round
	straysKey   = "hub.strays"
)

// strays removes references of agents' work whose bead is over or unknown: a
// push that was under way while the bead's references were removed leaves
// some. Repositories are looked at once a day while their town's sandbox runs,
// and once more afterwards; nothing is pushed to the others. The times are
// stored before the work, so that a restart repeats none.
func (h *Hall) strays(ctx context.Context, now time.Time) (left bool, err error) {
	heads, err := h.cfg.Store.AwakeTowns(ctx)
	if err != nil {
		return false, err
	}
	seen, err := straysSeen(ctx, h, now)
	if err != nil || len(heads) == 0 && len(seen) == 0 {
		return false, err
	}
	running := map[string]bool{}
	for _, head := range heads {
		running[head.ID] = true
	}
	ids, err := h.cfg.Hub.List()
	if err != nil {
		return false, err
	}
	before := maps.Clone(seen)
	due, left := duePlaces(ids, running, seen, now)
	if maps.Equal(before, seen) {
		return false, nil
	}
	text, err := json.Marshal(seen)
	if err != nil {
		return false, errs.Wrap(errs.Internal, err, "encoding the times of looks at repositories")
	}
	if err := h.cfg.Store.SetMeta(ctx, straysKey, string(text)); err != nil {
		return false, err
	}
	for _, id := range due {
		if err := h.dropStrays(ctx, id); err != nil && !errs.Is(err, errs.NotFound) {
			h.cfg.Log.Warn("stray references of a repository could not be removed", "repository", id.String(), "err", err)
		}
	}
	return left, nil
}

// duePlaces chooses the repositories to look at now and notes it in seen.
func duePlaces(ids []hub.ID, running map[string]bool, seen map[string]int64, now time.Time) (due []hub.ID, left bool) {
	there := map[string]bool{}
	for _, id := range ids {
		key := id.String()
		there[key] = true
		at, known := seen[key]
		lately := known && now.UnixMilli()-at < straysEach.Milliseconds()
		if running[id.Town] && lately || !running[id.Town] && !known {
			continue
		}
		if len(due) == straysBatch {
			left = true
			continue
		}
		due = append(due, id)
		if seen[key] = now.UnixMilli(); !running[id.Town] {
			delete(seen, key)
		}
	}
	maps.DeleteFunc(seen, func(key string, _ int64) bool { return !there[key] })
	return due, left
}

// straysSeen reads when repositories were looked at. Text that can't be read
// counts as none: looking twice is harmless. So does a time in the future.
func straysSeen(ctx context.Context, h *Hall, now time.Time) (map[string]int64, error) {
	text, ok, err := h.cfg.Store.Meta(ctx, straysKey)
	seen := map[string]int64{}
	if err != nil || !ok {
		return seen, err
	}
	if json.Unmarshal([]byte(text), &seen) != nil {
		return map[string]int64{}, nil
	}
	for key, at := range seen {
		seen[key] = min(at, now.UnixMilli())
	}
	return seen, nil
}

// dropStrays removes the stray references of one repository. They are listed
// before the town is asked, and removed only as they were listed: what a new
// run pushes meanwhile has another name or another value.
func (h *Hall) dropStrays(ctx context.Context, id hub.ID) error {
	refs, err := h.cfg.Hub.Refs(ctx, id, "refs/gastown/")
	if err != nil || len(refs) == 0 {
		return err
	}
	err = h.View(ctx, id.Town, func(t *town.Town, _ time.Time) error {
		maps.DeleteFunc(refs, func(ref, _ string) bool {
			bead, ok := beadOfRef(ref)
			return !ok || t.KeepsRefs(bead)
		})
		return nil
	})
	if err != nil || len(refs) == 0 {
		return err
	}
	if err := h.cfg.Hub.DropRefs(ctx, id, refs); err != nil {
		return err
	}
	h.metrics.Strays.Add(int64(len(refs)))
	h.cfg.Log.Info("references without a bead were removed", "repository", id.String(), "refs", len(refs))
	return nil
}

// beadOfRef is the bead of refs/gastown/wip/<bead>/<epoch> or
// refs/gastown/merge/<bead>/<n>.
func beadOfRef(ref string) (bead string, ok bool) {
	rest, isWip := strings.CutPrefix(ref, "refs/gastown/wip/")
	if !isWip {
		var isMerge bool
		if rest, isMerge = strings.CutPrefix(ref, "refs/gastown/merge/"); !isMerge {
			return "", false
		}
	}
	bead, _, ok = strings.Cut(rest, "/")
	return bead, ok
}
