package town

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gastown/internal/errs"
)

const (
	maxClaim         = 15 * time.Minute
	inspectAgain     = 10 * time.Second
	cleanupsAtOnce   = 8
	timeoutQuick     = 20 * time.Second
	timeoutGit       = 3 * time.Minute
	timeoutStart     = time.Minute
	timeoutNotify    = 40 * time.Second
	timeoutRemoveAll = 10 * time.Minute
)

// Effects returns what the outside world should be asked now and nobody is
// performing, in a fixed order.
func (t *Town) Effects(at time.Time) []Effect {
	now := At(at)
	var out []Effect
	add := func(key string, a Action, timeout time.Duration) {
		if c := t.claims[key]; c == nil || c.Until <= now {
			out = append(out, Effect{Key: key, Action: a, Timeout: timeout})
		}
	}
	t.sandboxEffects(now, add)
	if t.info.Mode == ModeDeleting {
		if t.info.Sandbox.State == SandboxAsleep && !t.info.Removed && len(t.runs) == 0 && !t.broken("town", now) {
			add("town/remove", RemoveTown{}, timeoutRemoveAll)
		}
		return out
	}
	for _, r := range t.sortedRigs() {
		t.rigEffects(r, now, add)
	}
	t.cleanupEffects(now, add)
	for _, n := range t.Notices() {
		if !n.Dead && n.Next <= now {
			add("notice/"+strconv.FormatInt(n.ID, 10), SendNotice{Notice: n, URL: t.text("notify.url", nil, nil)}, timeoutNotify)
		}
	}
	return out
}

type adder func(key string, a Action, timeout time.Duration)

func (t *Town) sandboxEffects(now Time, add adder) {
	s := &t.info.Sandbox
	switch s.State {
	case SandboxQueued:
		if now >= s.AdmitAt {
			add("sandbox/admit", Admit{}, timeoutQuick)
		}
	case SandboxStarting:
		if s.Ref == "" {
			add("sandbox/start", StartSandbox{Generation: s.Generation, FreshDisk: s.FreshDisk, TokenAt: s.TokenAt}, timeoutStart)
		}
	case SandboxStopping, SandboxWedged:
		if !t.broken("sandbox.stop", now) {
			grace := t.duration("sandbox.stop_grace", nil, nil)
			add("sandbox/stop", StopSandbox{Generation: cmp.Or(s.Leftover, s.Generation), Ref: s.Ref, Grace: grace}, grace+timeoutQuick)
		}
	case SandboxAwake, SandboxDraining:
		if t.silent(now) && now.Sub(s.Inspected) >= inspectAgain && !t.broken("sandbox.inspect", now) {
			add("sandbox/inspect", InspectSandbox{Generation: s.Generation, Ref: s.Ref}, timeoutQuick)
		}
		if t.renewalDue(now) && !t.broken("token", now) {
			add("token/renew", RenewToken{Generation: s.Generation, At: now}, timeoutQuick)
		}
	case SandboxAsleep:
	}
}

// renewalDue is the stored throttle of token renewals: they follow the time of
// the last one, and only a sandbox that is awake has anything to renew.
func (t *Town) renewalDue(now Time) bool {
	s := &t.info.Sandbox
	return s.State == SandboxAwake && (s.RenewAsked || now.Sub(s.TokenAt) >= t.duration("token.refresh_interval", nil, nil))
}

func (t *Town) rigEffects(r *Rig, now Time, add adder) {
	if r.State == RigRemoving {
		if t.ix.runsByRig[r.Name] == 0 && !t.broken("hub/"+r.Name, now) {
			add("rig/"+r.Name+"/remove", RemoveRig{Rig: *r}, timeoutGit)
		}
		return
	}
	if t.needsFetch(r, now) {
		add("rig/"+r.Name+"/fetch", FetchRig{Rig: *r, Write: t.writeDue(r, now) && !t.broken("write/"+r.Name, now)}, timeoutGit)
	}
	if id := t.ix.merging[r.Name]; id != "" {
		t.mergeEffects(t.beads[id], r, now, add)
	}
	ids := make([]string, 0, len(t.ix.waiting))
	for id := range t.ix.waiting {
		if t.beads[id].Rig == r.Name {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		t.mergeEffects(t.beads[id], r, now, add)
	}
}

// stale reports whether the known tip of a rig's target is too old to start
// something on.
func (t *Town) stale(r *Rig, now Time) bool {
	return now.Sub(r.FetchedAt) > t.duration("fetch.interval", nil, r) || r.FetchedAt > now.Add(maxClock)
}

// needsFetch reports whether something waits for a newer tip: only runnable work
// or a merge whose turn it is does.
func (t *Town) needsFetch(r *Rig, now Time) bool {
	stale := t.stale(r, now)
	if !stale && !t.writeDue(r, now) || t.broken("rig/"+r.Name, now) {
		return false
	}
	if stale && t.nextMerge(r, now) != nil {
		return true
	}
	if wait := t.rigWaits(r, now); wait.Kind != "" && wait.Kind != waitFetch {
		return false
	}
	b, _, alone := t.firstReady(r, now)
	return b != nil && !alone
}

func (t *Town) mergeEffects(b *Bead, r *Rig, now Time, add adder) {
	m := b.Merge
	key := "merge/" + b.ID + "/" + strconv.Itoa(m.N) + "/"
	broken := t.broken("rig/"+r.Name, now) || t.broken("merge/"+b.ID, now)
	pushes := m.State == MergeLanding || m.State == MergeWaiting && !m.Pushed
	switch {
	case broken || pushes && t.broken("push/"+r.Name, now):
	case m.State == MergeBuilding:
		name, address, _ := SplitIdentity(t.text("commit.author", nil, r))
		add(key+"candidate", BuildCandidate{Rig: *r, Bead: b.ID, N: m.N, Commit: b.Commit, Tip: m.Tip, Message: t.mergeMessage(b, r),
			Name: name, Address: address, When: m.Since}, timeoutGit)
	case m.State == MergeLanding:
		add(key+"land", Land{Rig: *r, Bead: b.ID, Candidate: m.Candidate, Tip: m.Tip}, timeoutGit)
	case m.State == MergeWaiting && !m.Pushed:
		add(key+"publish", Publish{Rig: *r, Bead: b.ID, Branch: b.Branch, Commit: b.Commit}, timeoutGit)
	case m.State == MergeWaiting && t.checkDue(b, r, now):
		add(key+"check", CheckTarget{Rig: *r, Bead: b.ID, Commit: b.Commit}, timeoutGit)
	}
}

// mergeMessage is the message of a merge commit, with the trailers of the rig.
func (t *Town) mergeMessage(b *Bead, r *Rig) string {
	var m strings.Builder
	m.WriteString("Merge " + b.ID + ": " + b.Title + "\n")
	if b.Summary != "" {
		m.WriteString("\n" + strings.TrimSpace(b.Summary) + "\n")
	}
	m.WriteString("\nBead: " + b.ID + "\nAgent: " + b.Rig + "/" + b.Agent + "\n")
	for _, tr := range t.trailers(r) {
		m.WriteString(tr + "\n")
	}
	return m.String()
}

// trailers are the last lines that a rig wants in messages of commits.
func (t *Town) trailers(r *Rig) []string {
	var out []string
	for tr := range strings.SplitSeq(t.text("commit.trailers", nil, r), ";") {
		if tr = strings.TrimSpace(tr); tr != "" && !strings.ContainsAny(tr, "\n\r") {
			out = append(out, tr)
		}
	}
	if t.text("commit.signoff", nil, r) == "true" {
		out = append(out, "Signed-off-by: "+t.text("commit.author", nil, r))
	}
	return out
}

func (t *Town) cleanupEffects(now Time, add adder) {
	n := 0
	for _, id := range t.cleanups() {
		b := t.beads[id]
		r := t.rigs[b.Rig]
		if t.runs[b.currentRun()] != nil || r.State != RigActive || t.broken("hub/"+r.Name, now) {
			continue
		}
		add("cleanup/"+id, CleanupBead{Rig: *r, Bead: id, Branch: b.Branch}, timeoutGit)
		if n++; n == cleanupsAtOnce {
			return
		}
	}
}

// cleaning reports whether somebody may be removing the refs of a bead. One who
// never answered doesn't count for longer than its claim.
func (t *Town) cleaning(b *Bead, now Time) bool {
	c := t.claims["cleanup/"+b.ID]
	return c != nil && c.Until > now
}

func (t *Town) cleanups() []string {
	if len(t.ix.refs) == 0 {
		return nil
	}
	ids := make([]string, 0, len(t.ix.refs))
	for id := range t.ix.refs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Claim records that boot is about to perform all current effects, and returns
// them with their claims. The caller performs them only after its commit.
func (t *Town) Claim(at time.Time, boot string) []Effect {
	now := At(at)
	out := t.Effects(at)
	for i := range out {
		t.info.ClaimSeq++
		out[i].ID = t.info.ClaimSeq
		attempt := 1
		if old := t.claims[out[i].Key]; old != nil {
			attempt = old.Attempt + 1
		}
		t.claims[out[i].Key] = &Claim{Key: out[i].Key, ID: t.info.ClaimSeq, Attempt: attempt, By: boot, Until: now.Add(out[i].Timeout)}
		t.mark(kindClaim, out[i].Key)
		t.mark(kindTown, t.info.ID)
	}
	return out
}

// VoidClaims drops the claims of other boots. Only a process that knows itself
// to be alone may call it.
func (t *Town) VoidClaims(boot string) {
	for key, c := range t.claims {
		if c.By != boot {
			t.dropClaim(key)
		}
	}
}

func (t *Town) dropClaim(key string) {
	if t.claims[key] != nil {
		delete(t.claims, key)
		t.mark(kindClaim, key)
	}
}

// effectDone takes the outcome of an effect. One whose claim is no longer the
// current one is stale and changes nothing.
func (t *Town) effectDone(now Time, in EffectDone) error {
	c := t.claims[in.Key]
	if c == nil || c.ID != in.ID {
		return nil
	}
	parts := strings.Split(in.Key, "/")
	if len(parts) < 2 {
		return errs.New(errs.Internal, "effect %q has no subject", clip(in.Key, 60))
	}
	t.dropClaim(in.Key)
	switch parts[0] {
	case "sandbox":
		t.sandboxEffectDone(now, parts[1], in)
	case "rig":
		t.rigEffectDone(now, parts, in)
	case "merge":
		t.mergeEffectDone(now, parts, in)
	case "cleanup":
		t.cleanupDone(now, parts[1], in)
	case "notice":
		t.noticeDone(now, parts[1], in)
	case "token":
		if in.Err != "" {
			t.failed(now, "token", in.Err)
		} else if t.renewalDue(now) {
			t.proved(now, "token")
			t.renewed(now, now)
		}
	case "town":
		if in.Err != "" {
			t.failed(now, "town", in.Err)
		} else {
			t.info.Removed = true
			t.mark(kindTown, t.info.ID)
		}
	}
	return nil
}

func (t *Town) sandboxEffectDone(now Time, verb string, in EffectDone) {
	s := &t.info.Sandbox
	switch verb {
	case "admit":
		a, _ := in.Result.(Admitted)
		t.admitted(now, a)
	case "start":
		if s.State != SandboxStarting {
			return
		}
		if in.Err != "" {
			t.setSandbox(now, SandboxWedged, "it could not be started: "+clip(in.Err, 300))
			t.dropRuns(now, OutcomeLost, ClassInfra, "the sandbox could not be started: "+in.Err)
			t.failed(now, "sandbox", in.Err)
			return
		}
		if r, ok := in.Result.(Started); ok {
			s.Ref = cmp.Or(r.Ref, "?")
			t.mark(kindTown, t.info.ID)
		}
	case "stop":
		if in.Err != "" {
			t.failed(now, "sandbox.stop", in.Err)
			return
		}
		t.proved(now, "sandbox.stop")
		if s.State == SandboxStopping || s.State == SandboxWedged {
			t.sandboxGone(now, "it was stopped")
		}
	case "inspect":
		if in.Err != "" {
			t.failed(now, "sandbox.inspect", in.Err)
		}
		if r, ok := in.Result.(Inspected); ok && in.Err == "" && t.silent(now) {
			t.inspected(now, r)
			return
		}
		s.Inspected = now
		t.mark(kindTown, t.info.ID)
	}
}

func (t *Town) rigEffectDone(now Time, parts []string, in EffectDone) {
	r := t.rigs[parts[1]]
	if r == nil || len(parts) != 3 {
		return
	}
	switch parts[2] {
	case "fetch":
		if in.Err != "" {
			t.failed(now, "rig/"+r.Name, in.Err)
			return
		}
		if f, ok := in.Result.(Fetched); ok {
			r.Tip, r.FetchedAt = f.Tip, now
			t.mark(kindRig, r.Name)
			t.proved(now, "rig/"+r.Name)
			t.writeProbed(r, now, f)
		}
	case "remove":
		if in.Err != "" {
			t.failed(now, "hub/"+r.Name, in.Err)
			return
		}
		t.forgetRig(r, now)
	}
}

func (t *Town) mergeEffectDone(now Time, parts []string, in EffectDone) {
	if len(parts) != 4 {
		return
	}
	b := t.beads[parts[1]]
	if b == nil || b.Merge == nil || strconv.Itoa(b.Merge.N) != parts[2] {
		return
	}
	r := t.rigs[b.Rig]
	if in.Err != "" {
		if parts[3] == "candidate" {
			t.failed(now, "merge/"+b.ID, in.Err)
			t.requeue(b, now)
			return
		}
		subject := "rig/" + r.Name
		if parts[3] == "land" || parts[3] == "publish" {
			subject = "push/" + r.Name // a remote that lets itself be read may refuse to be written
		}
		t.failed(now, subject, in.Err)
		return
	}
	switch res := in.Result.(type) {
	case Candidate:
		if b.Merge.State == MergeBuilding {
			t.candidateBuilt(b, r, now, res)
		}
	case Landed:
		if b.Merge.State == MergeLanding {
			t.landed(b, r, now, res)
		}
	case Checked:
		t.targetChecked(b, r, now, res)
	case nil:
		if parts[3] == "publish" && b.Merge.State == MergeWaiting {
			t.proved(now, "rig/"+r.Name)
			t.pushed(r, now)
			t.edit(b, now, func() { b.Merge.Pushed, b.Merge.CheckedAt = true, now })
			t.log(now, "merge.published", b.ID, "", "branch "+b.Branch+" is upstream and waits to be merged into "+r.Target)
		}
	}
}

func (t *Town) targetChecked(b *Bead, r *Rig, now Time, c Checked) {
	if b.Merge.State != MergeWaiting {
		return
	}
	t.proved(now, "rig/"+r.Name)
	if c.Tip != "" && c.Tip != r.Tip {
		r.Tip, r.FetchedAt = c.Tip, now
		t.mark(kindRig, r.Name)
	}
	if c.In {
		t.closeBead(b, now, Proof{Kind: ProofMerged, Commit: b.Commit, At: now}, "")
		return
	}
	t.edit(b, now, func() { b.Merge.CheckedAt, b.Merge.Asked = now, false })
}

func (t *Town) cleanupDone(now Time, id string, in EffectDone) {
	b := t.beads[id]
	if b == nil || !b.Status.Terminal() {
		return
	}
	if in.Err != "" {
		t.failed(now, "hub/"+b.Rig, in.Err)
		return
	}
	t.proved(now, "hub/"+b.Rig)
	t.edit(b, now, func() { b.Refs = false })
}

func (t *Town) noticeDone(now Time, id string, in EffectDone) {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil || t.notices[n] == nil {
		return
	}
	notice := t.notices[n]
	if in.Err == "" {
		delete(t.notices, n)
		t.mark(kindNotice, id)
		t.log(now, "notice.sent", notice.Subject, "", notice.Kind)
		return
	}
	notice.Tries++
	notice.Error = plain(in.Err, 500)
	notice.Next = now.Add(t.backoff(notice.Tries, "notice/"+id))
	notice.Dead = notice.Tries >= maxNoticeTries
	t.mark(kindNotice, id)
	if notice.Dead {
		t.log(now, "notice.dead", notice.Subject, "", notice.Error, "notice", id)
	}
}
