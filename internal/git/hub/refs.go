package hub

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gastown/internal/errs"
	"gastown/internal/git"
)

// Diff returns the patch from base to commit, at most limit bytes of it.
func (h *Hub) Diff(ctx context.Context, id ID, base, commit string, limit int64) (patch []byte, truncated bool, err error) {
	for _, oid := range []string{base, commit} {
		if err := git.ValidOID(oid); err != nil {
			return nil, false, err
		}
	}
	dir, err := h.Path(id)
	if err != nil {
		return nil, false, err
	}
	out, err := h.run(ctx, dir, git.Cmd{
		Args:     []string{"diff", "--no-color", "--no-ext-diff", "--no-textconv", "--find-renames", base, commit, "--"},
		MaxOut:   max(limit, 1),
		Truncate: true,
	})
	if git.Code(err) == 128 {
		return nil, false, errs.Wrap(errs.NotFound, err, "the hub lacks one of the commits")
	}
	return out.Stdout, out.Truncated, err
}

// Refs returns the references below prefix ("refs/gastown/wip/b-1/") with
// their object ids.
func (h *Hub) Refs(ctx context.Context, id ID, prefix string) (map[string]string, error) {
	if trimmed := strings.TrimSuffix(prefix, "/"); trimmed != "refs" && git.ValidRef(trimmed+"/x") != nil {
		return nil, errs.New(errs.Invalid, "%.120q is not a prefix of references", prefix)
	}
	dir, err := h.Path(id)
	if err != nil {
		return nil, err
	}
	return h.refs(ctx, dir, prefix)
}

func (h *Hub) refs(ctx context.Context, dir string, patterns ...string) (map[string]string, error) {
	out, err := h.text(ctx, dir, append([]string{"for-each-ref", "--format=%(objectname) %(refname)", "--"}, patterns...)...)
	if err != nil {
		return nil, err
	}
	refs := map[string]string{}
	for line := range strings.SplitSeq(out, "\n") {
		if oid, name, ok := strings.Cut(line, " "); ok {
			refs[name] = oid
		}
	}
	return refs, nil
}

// DropBead deletes a bead's checkpoints and merge candidates, and the given
// branches, which must be agents' branches (gt/...). What is not there is no error.
func (h *Hub) DropBead(ctx context.Context, id ID, bead string, branches ...string) error {
	if err := validBead(bead); err != nil {
		return err
	}
	patterns := []string{"refs/gastown/wip/" + bead + "/", "refs/gastown/merge/" + bead + "/"}
	for _, b := range branches {
		if err := git.ValidBranch(b); err != nil {
			return err
		}
		if !strings.HasPrefix(b, "gt/") {
			return errs.New(errs.Invalid, "%q is not an agent's branch", b)
		}
		patterns = append(patterns, "refs/heads/"+b, "refs/upstream/heads/"+b)
	}
	dir, err := h.Path(id)
	if err != nil {
		return err
	}
	refs, err := h.refs(ctx, dir, patterns...)
	if err != nil || len(refs) == 0 {
		return err
	}
	var b strings.Builder
	for name := range refs {
		// A branch pattern also matches what lies below it, which is not ours to drop.
		if strings.HasPrefix(name, patterns[0]) || strings.HasPrefix(name, patterns[1]) || slices.Contains(patterns[2:], name) {
			b.WriteString("delete " + name + "\n")
		}
	}
	_, err = h.run(ctx, dir, git.Cmd{Args: []string{"update-ref", "--stdin"}, Stdin: strings.NewReader(b.String())})
	return errs.Wrap(errs.Internal, err, "deleting the bead's references")
}

// DropRefs deletes checkpoints and merge candidates that still have the given
// values. One that changed meanwhile, or is not of these, stays and makes it
// fail; those that are gone are no error.
func (h *Hub) DropRefs(ctx context.Context, id ID, refs map[string]string) error {
	dir, err := h.Path(id)
	if err != nil {
		return err
	}
	for name, oid := range refs {
		if !strings.HasPrefix(name, "refs/gastown/wip/") && !strings.HasPrefix(name, "refs/gastown/merge/") || git.ValidRef(name) != nil {
			return errs.New(errs.Invalid, "%.120q is no reference of an agent's work", name)
		}
		if err := git.ValidOID(oid); err != nil {
			return err
		}
	}
	there, err := h.refs(ctx, dir, "refs/gastown/wip", "refs/gastown/merge")
	if err != nil {
		return err
	}
	var b strings.Builder
	for name, oid := range refs {
		if there[name] != "" {
			b.WriteString("delete " + name + " " + oid + "\n")
		}
	}
	if b.Len() == 0 {
		return nil
	}
	_, err = h.run(ctx, dir, git.Cmd{Args: []string{"update-ref", "--stdin"}, Stdin: strings.NewReader(b.String())})
	return errs.Wrap(errs.Conflict, err, "deleting references")
}

// Maintain packs a repository when it has grown enough to be worth it (git gc
// --auto). Objects that nothing refers to stay two weeks, so that it may run
// beside pushes.
func (h *Hub) Maintain(ctx context.Context, id ID) error {
	dir, err := h.Path(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cloneTimeout)
	defer cancel()
	unlock, err := h.lock(ctx, dir+maintenance)
	if err != nil {
		return err
	}
	defer unlock()
	_, err = h.Do(ctx, dir, git.Cmd{Dir: dir, GitDir: dir, Args: []string{"gc", "--auto", "--quiet"}, Config: []git.Setting{
		{Key: "gc.auto", Value: "2000"}, {Key: "gc.autoDetach", Value: "false"}, {Key: "gc.pruneExpire", Value: "2.weeks.ago"},
	}})
	return err
}

// BeadRefs lists the references that belong to beads: checkpoints, candidates
// and agents' branches. A repository without any is told from its files alone,
// so that many can be looked at.
func (h *Hub) BeadRefs(ctx context.Context, id ID) ([]BeadRef, error) {
	dir, err := h.Path(id)
	if err != nil {
		return nil, err
	}
	if !mayHoldBeads(dir) {
		return nil, nil
	}
	refs, err := h.refs(ctx, dir, "refs/gastown/", "refs/heads/gt/")
	if err != nil {
		return nil, err
	}
	var out []BeadRef
	for name := range refs {
		parts := strings.Split(name, "/")
		switch {
		case len(parts) == 5 && parts[1] == "gastown": // refs/gastown/wip/<bead>/<n>
			out = append(out, BeadRef{Name: name, Bead: parts[3]})
		case len(parts) == 5 && parts[1] == "heads": // refs/heads/gt/<agent>/<bead>
			out = append(out, BeadRef{Name: name, Bead: parts[4], Branch: strings.TrimPrefix(name, "refs/heads/")})
		}
	}
	slices.SortFunc(out, func(a, b BeadRef) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// BeadRef is a reference that belongs to a bead.
type BeadRef struct {
	Name   string
	Bead   string
	Branch string // of an agent, without refs/heads/; "" for others
}

// mayHoldBeads looks for such references in the files of a repository. A wrong
// yes costs a call of git.
func mayHoldBeads(dir string) bool {
	for _, sub := range []string{"refs/gastown/wip", "refs/gastown/merge", "refs/heads/gt"} {
		if found, err := os.ReadDir(filepath.Join(dir, sub)); err == nil && len(found) > 0 {
			return true
		}
	}
	packed, err := os.ReadFile(filepath.Join(dir, "packed-refs"))
	return err == nil && (bytes.Contains(packed, []byte(" refs/gastown/")) || bytes.Contains(packed, []byte(" refs/heads/gt/"))) ||
		err != nil && !errors.Is(err, fs.ErrNotExist)
}
