package server

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/git"
	"gastown/internal/git/hub"
	"gastown/internal/hall"
	"gastown/internal/town"
)

const (
	maxImport      = int64(4) << 30
	maxImportLine  = 8 << 20     // a stored row has at most 4 MiB; escapes make it longer
	importLines    = 500         // of one commit
	importBytes    = 1 << 20     // of one commit
	uploadPatience = time.Minute // without a byte
)

type importIn struct {
	IdemKey
	Name   string   `query:"name" maxLength:"60" doc:"Of the new town; default: the name in the file."`
	Rename []string `query:"rename_prefix" doc:"Gives the rig with a prefix, and its beads, another: old=new. Several are separated by commas."`
	DryRun bool     `query:"dry_run" doc:"Only check the file, and whether names and prefixes are free."`
	Start  bool     `query:"start" doc:"The town is active at once instead of paused."`
}

// importTown answers by itself, because the body is read as it comes.
func (s *Server) importTown(ctx context.Context, in *importIn) (*huma.StreamResponse, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	rename := map[string]string{}
	for _, r := range in.Rename {
		old, to, ok := strings.Cut(r, "=")
		if _, dup := rename[old]; !ok || dup {
			return nil, errs.New(errs.Invalid, "rename_prefix: %q is not old=new, or names a prefix twice", printable(r, 60))
		}
		rename[old] = to
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		out, err := s.importBody(r.Context(), w, r, in, rename)
		if err != nil {
			s.fail(w, err)
			return
		}
		s.jsonAnswer(w, out)
	}}, nil
}

// upload is a file that was received whole, on a disk where nothing remains of
// it when this process ends, however it ends.
type upload struct {
	f    *os.File
	hash string
}

func (u *upload) close() error { return u.f.Close() }

// receiveFile stores a body of any length up to maxImport.
func (s *Server) receiveFile(w http.ResponseWriter, r *http.Request) (*upload, error) {
	f, err := os.CreateTemp(s.cfg.Info.Data, ".import-*")
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "keeping the file while it is checked")
	}
	u := &upload{f: f}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(errs.Wrap(errs.Internal, err, "keeping the file while it is checked"), u.close())
	}
	sum := sha256.New()
	body := &patient{r: r.Body, rc: http.NewResponseController(w)}
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(body, maxImport+1))
	switch {
	case body.err != nil:
		err = errs.New(errs.Invalid, "the file did not arrive whole")
	case err != nil:
		err = errs.Wrap(errs.Unavailable, err, "keeping the file while it is checked")
	case n > maxImport:
		p := newProblem(http.StatusRequestEntityTooLarge, errs.Invalid, "the file is too large")
		p.Hint = fmt.Sprintf("an import has at most %d GiB", maxImport>>30)
		err = p
	}
	if err != nil {
		return nil, errors.Join(err, u.close())
	}
	u.hash = hex.EncodeToString(sum.Sum(nil))
	return u, nil
}

// patient reads a body, each piece within its own deadline.
type patient struct {
	r   io.Reader
	rc  *http.ResponseController
	err error
}

func (p *patient) Read(b []byte) (int, error) {
	// Recorders in tests know no deadlines.
	_ = p.rc.SetReadDeadline(time.Now().Add(uploadPatience))
	n, err := p.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		p.err = err
	}
	return n, err
}

// read goes through the file line by line. each gets what the importer made of a
// line, and the number of bytes of the line.
func (u *upload) read(im *town.Importer, each func(v any, size int) error) error {
	if _, err := u.f.Seek(0, io.SeekStart); err != nil {
		return errs.Wrap(errs.Internal, err, "reading the file")
	}
	sum := sha256.New()
	in := bufio.NewReaderSize(u.f, maxImportLine)
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return errs.New(errs.Invalid, "line %d: it is longer than %s", im.LineNumber()+1, size(maxImportLine))
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return errs.Wrap(errs.Internal, err, "reading the file")
		}
		if len(line) == 0 {
			return im.Done()
		}
		v, lineErr := im.Line(slices.Clone(line), func() string { return hex.EncodeToString(sum.Sum(nil)) })
		if lineErr != nil {
			return lineErr
		}
		sum.Write(line) // never fails
		if err := each(v, len(line)); err != nil {
			return err
		}
	}
}

// imported is an import that was checked.
type imported struct {
	file   *upload
	rename map[string]string
	im     *town.Importer
	into   town.ImportedTown
	start  bool
	by     string
}

func (s *Server) importBody(ctx context.Context, w http.ResponseWriter, r *http.Request, in *importIn, rename map[string]string) (*raw, error) {
	file, err := s.receiveFile(w, r)
	if err != nil {
		return nil, err
	}
	defer func() {
		// Only read since it was received: there is nothing to lose.
		_ = file.close()
	}()
	// Whatever the file is: one import of a request at a time.
	what := strings.Join([]string{file.hash, in.Name, fmt.Sprint(in.Start), fmt.Sprint(in.DryRun), strings.Join(slices.Sorted(slices.Values(in.Rename)), ",")}, " ")
	request := ""
	if in.Key != "" && !in.DryRun {
		request = in.Key + " " + what
		unlock, err := s.adding.lock(ctx, "import/"+in.Key)
		if err != nil {
			return nil, err
		}
		defer unlock()
		if done, err := s.recorded(ctx, hall.ImportID(request), in.IdemKey, digestOf(what)); done != nil || err != nil {
			return done, err
		}
	}
	j := &imported{file: file, rename: rename, start: in.Start, by: callOf(ctx).who}
	if err := s.checkImport(ctx, j, in.Name, request); err != nil {
		return nil, err
	}
	if in.DryRun {
		v := j.view("")
		v.DryRun = true
		return rawAnswer(http.StatusOK, encode(v), false), nil
	}
	return s.doImport(ctx, j, in.IdemKey, request, digestOf(what))
}

func digestOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:16])
}

// checkImport reads the whole file and checks what it says against this server.
// It changes nothing.
func (s *Server) checkImport(ctx context.Context, j *imported, name, request string) error {
	var err error
	if j.im, err = town.NewImporter(j.rename); err != nil {
		return err
	}
	err = j.file.read(j.im, func(v any, _ int) error {
		switch v := v.(type) {
		case town.Rig:
			return j.im.At(s.fitsHere(v))
		case town.Bead:
			if !v.Status.Terminal() {
				return j.im.At(s.checkSettings(town.LevelBead, v.Settings))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	j.into, _ = j.im.Town()
	if err := s.checkSettings(town.LevelTown, j.into.Settings); err != nil {
		return errs.Wrap(errs.Invalid, err, "line 2")
	}
	j.into.By, j.into.Name = j.by, cmp.Or(name, j.into.Name)
	if err := town.ValidName("town", j.into.Name); err != nil {
		return err
	}
	return s.checkFree(ctx, j, request)
}

// fitsHere checks what the domain can't know of a rig.
func (s *Server) fitsHere(r town.Rig) error {
	if err := git.ValidRemoteURL(r.URL); err != nil {
		return err
	}
	if err := git.ValidBranch(r.Target); err != nil {
		return err
	}
	return s.checkSettings(town.LevelRig, r.Settings)
}

// checkFree looks whether the town's name and the prefixes are free. What an
// earlier try of the same request holds counts as free.
func (s *Server) checkFree(ctx context.Context, j *imported, request string) error {
	own := ""
	if request != "" {
		own = hall.ImportID(request)
	}
	head, err := s.hall.Resolve(ctx, j.into.Name)
	switch {
	case err == nil && head.ID != own:
		return errs.New(errs.Conflict, "a town %s exists already", j.into.Name).WithHint("give the new one another name with --name")
	case err != nil && !errs.Is(err, errs.NotFound):
		return err
	}
	var taken []string
	for _, r := range j.im.Rigs() {
		owners, err := s.store.FindPrefix(ctx, r.Prefix)
		if err != nil {
			return err
		}
		if len(owners) > 0 && owners[0].Town != own {
			taken = append(taken, r.Prefix)
		}
	}
	if len(taken) == 0 {
		return nil
	}
	return errs.New(errs.Conflict, "prefixes of bead ids that belong to rigs of this server already: %s", strings.Join(taken, ", ")).
		WithHint("rename them: --rename-prefix %s=NEW", taken[0])
}

func (j *imported) view(id string) api.Imported {
	h := j.im.Header()
	_, note := j.im.Town()
	out := api.Imported{Town: j.into.Name, TownID: id, From: h.Town, ExportedAt: exportedAt(h), Mode: string(town.ModePaused),
		Beads: j.im.Counts().Beads, Reopened: j.im.Reopened(), Ledger: j.im.Counts().Ledger, LeftOut: note.LeftOut}
	if j.start {
		out.Mode = string(town.ModeActive)
	}
	out.Rigs = mapped(j.im.Rigs(), func(r town.ExportRig) api.ImportedRig {
		return api.ImportedRig{Name: r.Name, Prefix: r.Prefix, URL: r.URL, Target: r.Target, Credential: r.Credential}
	})
	return out
}

func exportedAt(h town.ExportHeader) time.Time {
	t, err := time.Parse(time.RFC3339, string(h.ExportedAt))
	if err != nil {
		return time.Time{} // the importer has checked it
	}
	return t.UTC()
}

// doImport makes the town. It is not there for anyone before its last commit:
// until then it only takes parts, and deletes itself when none come any more.
func (s *Server) doImport(ctx context.Context, j *imported, k IdemKey, request, hash string) (*raw, error) {
	id, err := s.hall.StartImport(ctx, j.into, request)
	if err != nil {
		return nil, err
	}
	s.places.drop(j.into.Name)
	finish := town.FinishImport{By: j.by, From: j.im.Header().Town, ExportedAt: town.At(exportedAt(j.im.Header())), Counts: j.im.Counts(),
		Reopened: j.im.Reopened(), Start: j.start}
	var out *raw
	if err = s.importParts(ctx, id, j); err == nil {
		out, err = s.commit(ctx, id, finish, k, hash, http.StatusCreated, func(*town.Town) any { return j.view(id) })
	}
	if err != nil && (!errs.Is(err, errs.Unavailable) || ctx.Err() != nil) {
		s.giveUpImport(ctx, id, j.by)
	}
	return out, err
}

// giveUpImport deletes a town whose import failed. One that is left behind all
// the same deletes itself.
func (s *Server) giveUpImport(ctx context.Context, id, by string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	mode := town.Mode("")
	err := s.view(ctx, id, func(t *town.Town) error { mode = t.Info().Mode; return nil })
	if err == nil && mode == town.ModeImporting {
		err = s.hall.Do(ctx, id, town.DeleteTown{By: by})
	}
	if err != nil && !errs.Is(err, errs.NotFound) {
		s.log.Warn("an import that failed is not removed yet", "town", id, "err", err)
	}
}

// importParts reads the file again and hands it to the town in parts. What a
// part has depends on the file alone, so a repeat makes the same ones.
func (s *Server) importParts(ctx context.Context, id string, j *imported) error {
	again, err := town.NewImporter(j.rename)
	if err != nil {
		return err
	}
	var part town.ImportPart
	lines, bytes := 0, 0
	flush := func() error {
		err := s.hall.Do(ctx, id, part)
		part = town.ImportPart{N: part.N + 1}
		lines, bytes = 0, 0
		return err
	}
	err = j.file.read(again, func(v any, size int) error {
		switch v := v.(type) {
		case town.Rig:
			part.Rigs = append(part.Rigs, v)
		case town.Bead:
			part.Beads = append(part.Beads, v)
		case town.Entry:
			part.Ledger = append(part.Ledger, v)
		default:
			return nil
		}
		if lines, bytes = lines+1, bytes+size; lines < importLines && bytes < importBytes {
			return nil
		}
		return flush()
	})
	if err != nil || lines == 0 {
		return err
	}
	return flush()
}

type cloneRigIn struct {
	RigPath
	IdemKey
	Body api.CloneRig
}

// cloneRig brings the repository of an imported rig into the hub.
func (s *Server) cloneRig(ctx context.Context, in *cloneRigIn) (*raw, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	unlock, err := s.adding.lock(ctx, id+"/"+in.Rig)
	if err != nil {
		return nil, err
	}
	defer unlock()
	hash := digest(ctx, "clone-rig", id, in.Rig)
	if done, err := s.recorded(ctx, id, in.IdemKey, hash); done != nil || err != nil {
		return done, err
	}
	rig, err := s.missingRig(ctx, id, in)
	if err != nil {
		return nil, err
	}
	repo := hub.ID{Town: id, Rig: rig.Name}
	l, err := newLogin(in.Body.Credential, in.Body.GitToken, rig.URL)
	if err != nil {
		return nil, err
	}
	if l.Credential != nil {
		rig.Secret = secretName(id, rig.Name)
		if err := s.keep(rig.Secret, l); err != nil {
			return nil, err
		}
	}
	tip, err := s.cfg.Hub.Add(ctx, repo, remote(rig), hub.AddOptions{})
	if errs.Is(err, errs.Conflict) && s.stillMissing(ctx, id, rig.Name) {
		// What an attempt left behind that died before it was recorded.
		if rmErr := s.cfg.Hub.RemoveRig(ctx, repo); rmErr != nil {
			return nil, errors.Join(err, rmErr)
		}
		tip, err = s.cfg.Hub.Add(ctx, repo, remote(rig), hub.AddOptions{})
	}
	if err != nil {
		return nil, s.undoRig(ctx, repo, rig.Secret, false, err)
	}
	out, err := s.commit(ctx, id, town.CloneRig{By: callOf(ctx).who, Rig: rig.Name, URL: rig.URL, Tip: tip, Secret: rig.Secret}, in.IdemKey, hash,
		http.StatusOK, func(t *town.Town) any {
			r, _ := t.Rig(rig.Name) // the input found it
			return rigView(t, r)
		})
	if err != nil && s.stillMissing(ctx, id, rig.Name) {
		err = s.undoRig(ctx, repo, rig.Secret, true, err)
	}
	return out, err
}

// missingRig returns the rig that is to be cloned, with its new place.
func (s *Server) missingRig(ctx context.Context, id string, in *cloneRigIn) (town.Rig, error) {
	var rig town.Rig
	err := s.view(ctx, id, func(t *town.Town) (err error) {
		if rig, err = getRig(t, in.Rig); err == nil && rig.State != town.RigMissing {
			err = errs.New(errs.Conflict, "rig %s has its repository already", rig.Name)
		}
		return err
	})
	if err != nil {
		return rig, err
	}
	rig.URL = cmp.Or(in.Body.URL, rig.URL)
	return rig, git.ValidRemoteURL(rig.URL)
}

// stillMissing reports whether the town certainly has the rig, and no repository of it.
func (s *Server) stillMissing(ctx context.Context, townID, rig string) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	missing := false
	err := s.view(ctx, townID, func(t *town.Town) error {
		r, ok := t.Rig(rig)
		missing = ok && r.State == town.RigMissing
		return nil
	})
	return err == nil && missing
}
