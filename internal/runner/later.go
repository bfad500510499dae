package runner

import (
	"context"
	"strconv"
	"strings"

	"gastown/internal/errs"
	"gastown/internal/git"
	"gastown/internal/town"
)

// takeLater returns the newest checkpoint in the hub with which the run should
// begin instead of the document's, "" for none. A runner that was killed between
// the push of a checkpoint and its report leaves one that the town never heard of.
//
// The reference that the document names bounds the look: the town forgets it with
// every verdict, so all checkpoints of the bead from that epoch on are of work that
// was cut off. When the hub can't be asked, the document's will do.
func (r *Runner) takeLater(ctx context.Context, d town.DesiredRun, c *rigClone) string {
	prefix := "refs/gastown/wip/" + d.Bead + "/"
	known, err := strconv.ParseInt(strings.TrimPrefix(d.ResumeRef, prefix), 10, 64)
	if d.Resume == "" || err != nil {
		return ""
	}
	refs, err := c.list(ctx, d.ID, d.Epoch, prefix+"*")
	if err != nil {
		r.log.Warn("the hub could not be asked for a later checkpoint", "bead", d.Bead, "err", err)
		return ""
	}
	tip, at := "", known-1
	for ref, oid := range refs {
		if epoch, err := strconv.ParseInt(strings.TrimPrefix(ref, prefix), 10, 64); err == nil && epoch > at && epoch < d.Epoch {
			tip, at = oid, epoch
		}
	}
	if tip == "" || tip == d.Resume {
		return ""
	}
	if err := c.ensure(ctx, tip, d.Bead); err != nil {
		r.log.Warn("a later checkpoint could not be fetched", "bead", d.Bead, "checkpoint", tip, "err", err)
		return ""
	}
	if !r.standsOn(ctx, c, d.Base, tip) {
		r.log.Warn("a later checkpoint does not stand on the base of the new run", "bead", d.Bead, "checkpoint", tip)
		return ""
	}
	return tip
}

// standsOn says whether the work under a checkpoint descends from base: else
// its commits could never be accepted.
func (r *Runner) standsOn(ctx context.Context, c *rigClone, base, checkpoint string) bool {
	if git.ValidOID(base) != nil || git.ValidOID(checkpoint) != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, localTimeout)
	defer cancel()
	_, err := r.rigs.git.RunBare(ctx, c.dir, "merge-base", "--is-ancestor", base, checkpoint+"^1")
	return err == nil
}

// list returns the references of the hub that match a pattern, as a run sees
// them, with their object ids.
func (c *rigClone) list(ctx context.Context, run string, epoch int64, pattern string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out, err := c.of.git.Do(ctx, c.of.hub.command(c.dir, run, epoch, "ls-remote", "--quiet", "--", c.of.hub.url(c.name), pattern))
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "listing checkpoints of rig %s", c.name)
	}
	refs := map[string]string{}
	for line := range strings.Lines(string(out.Stdout)) {
		if oid, ref, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t"); ok && git.ValidOID(oid) == nil {
			refs[ref] = oid
		}
	}
	return refs, nil
}
