package store

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
)

const (
	queueLength   = 1024     // writes that may wait before callers do
	batchBytes    = 16 << 20 // bodies in one transaction, roughly
	checkpointJob = 1000     // writes between checkpoints
	checkpointLen = 4 << 20  // bytes of bodies between checkpoints
	walPages      = 16 << 10 // log length (64 MiB) at which the writer helps to reset it
)

// job is one write. run applies it inside the writer's transaction; an error
// undoes only this job, unless SQLite itself failed.
type job struct {
	run  func(*tx) error
	size int
	done chan error // buffered: the writer never waits for a caller
	err  error
}

// tx is what a job sees of the transaction. Statements run without the caller's
// context: a write that has begun is never interrupted.
type tx struct {
	*link
	writes, bytes int64
}

func (t *tx) do(q string, args ...any) (int64, error) {
	n, err := t.exec(context.Background(), q, args...)
	t.writes += n
	return n, err
}

// writer owns the only connection that writes. Whatever is queued when it looks
// becomes one transaction, each job a savepoint; replies leave after COMMIT.
type writer struct {
	dsn, path string
	batch     int
	queue     chan *job
	quit      chan struct{} // closed by stop
	ended     chan struct{} // closed when the goroutine has ended
	stopping  sync.Once
	stopErr   error

	l      *link             // nil after a failure, dialled again by the next batch
	commit func(*link) error // COMMIT; tests replace it
	broken error             // why the store is read-only; used by the goroutine only

	health      *health
	probe       probing
	spoilt      chan error // damage that a check found
	dropReaders func()     // closes idle reading connections
	recheck     func()     // has the files read whole beside everything else

	ckpt      *checkpointer
	sinceJobs int
	sinceLen  int

	writes, bytes, jobs, batches atomic.Int64
}

func startWriter(dsn, path string, batch int, h *health, dropReaders, recheck func()) (*writer, error) {
	l, err := dial(dsn)
	if err != nil {
		return nil, err
	}
	dropTombstones(l)
	w := &writer{dsn: dsn, path: path, batch: batch, l: l, queue: make(chan *job, queueLength),
		quit: make(chan struct{}), ended: make(chan struct{}), commit: commitLink,
		health: h, dropReaders: dropReaders, recheck: recheck, spoilt: make(chan error)}
	w.ckpt = startCheckpointer(dsn)
	go w.loop()
	return w, nil
}

// dropTombstones forgets deletions. Only a copy in memory older than them could
// ask for them, and no copy is older than this process. What is left over by the
// limit goes next time.
func dropTombstones(l *link) {
	// A store that can't delete (a full disk) still opens; tombstones harm nobody.
	_, _ = l.exec(context.Background(), `DELETE FROM town_rows WHERE (town, kind, id) IN
 (SELECT town, kind, id FROM town_rows INDEXED BY town_rows_deleted WHERE body IS NULL LIMIT 20000)`)
}

func commitLink(l *link) error {
	_, err := l.exec(context.Background(), "COMMIT")
	return err
}

// stop ends the goroutine after the jobs that are queued already.
func (w *writer) stop() error {
	w.stopping.Do(func() {
		close(w.quit)
		<-w.ended
		err := w.ckpt.stop()
		if w.l != nil {
			err = errors.Join(err, w.l.close())
		}
		w.stopErr = err
	})
	return w.stopErr
}

// do queues a write and waits for its durable outcome. When ctx ends first the
// write goes on and the error is both ctx's and ErrUnknown, unless it was never
// queued.
func (w *writer) do(ctx context.Context, size int, run func(*tx) error) error {
	if err := ctx.Err(); err != nil {
		return readFailure(ctx, err)
	}
	j := &job{run: run, size: size, done: make(chan error, 1)}
	select {
	case <-w.quit:
		return ErrClosed()
	default:
	}
	select {
	case w.queue <- j:
	case <-w.quit:
		return ErrClosed()
	case <-ctx.Done():
		return readFailure(ctx, ctx.Err())
	}
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		return unknownOutcome(ctx.Err())
	case <-w.ended:
		// The job may have been queued after the last look at the queue.
		select {
		case err := <-j.done:
			return err
		default:
			return ErrClosed()
		}
	}
}

func (w *writer) loop() {
	defer close(w.ended)
	for {
		select {
		case j := <-w.queue:
			w.run(w.gather(j))
		case err := <-w.spoilt:
			w.broken = err
		case <-w.probe.tick():
			w.tryAgain()
		case err := <-w.probe.result:
			w.tried(err)
		case <-w.quit:
			w.endProbe()
			for {
				select {
				case j := <-w.queue:
					w.run(w.gather(j))
				default:
					return
				}
			}
		}
	}
}

// endProbe waits for a try under way.
func (w *writer) endProbe() {
	if w.probe.result != nil {
		w.tried(<-w.probe.result)
	}
	w.probe.reset()
}

// gather takes what is queued, up to the limits of a batch.
func (w *writer) gather(first *job) []*job {
	jobs, size := []*job{first}, first.size
	// Callers that were just answered are about to queue their next write.
	runtime.Gosched()
	for len(jobs) < w.batch && size < batchBytes {
		select {
		case j := <-w.queue:
			jobs = append(jobs, j)
			size += j.size
		default:
			return jobs
		}
	}
	return jobs
}

// run makes one transaction of jobs and answers all of them.
func (w *writer) run(jobs []*job) {
	t, err := w.apply(jobs)
	if err == nil {
		w.writes.Add(t.writes)
		w.bytes.Add(t.bytes)
		w.jobs.Add(int64(len(jobs)))
		w.batches.Add(1)
	}
	for _, j := range jobs {
		if err != nil {
			j.err = err
		}
		j.done <- j.err
	}
	if err == nil {
		w.noteForCheckpoint(len(jobs), int(t.bytes))
	}
}

// apply returns an error when the whole batch failed. Errors of single jobs stand
// in the jobs.
func (w *writer) apply(jobs []*job) (*tx, error) {
	if w.broken != nil {
		return nil, w.readOnly()
	}
	if w.probe.result != nil { // the disk was full, and a try to write is under way
		w.tried(<-w.probe.result)
	}
	if w.l == nil {
		l, err := dial(w.dsn)
		if err != nil {
			w.note(err)
			return nil, refused(err)
		}
		w.l = l
	}
	t := &tx{link: w.l}
	if _, err := t.exec(context.Background(), "BEGIN IMMEDIATE"); err != nil {
		return nil, w.fail(err)
	}
	for _, j := range jobs {
		if err := w.one(t, j); err != nil {
			return nil, w.fail(err)
		}
	}
	if err := w.commit(w.l); err != nil {
		// A full disk or a lock is found before the commit record is complete;
		// after any other error the record may or may not be on disk.
		if c := code(err); c == codeFull || c == codeBusy {
			return nil, w.fail(err)
		}
		w.broken = err
		w.note(err)
		if w.health.snapshot().State == Healthy { // an error without a code: the outcome is as unknown
			w.health.turned(ReadOnly, err)
			w.probe.plan()
		}
		w.rollback()
		return nil, unknownOutcome(err)
	}
	if w.health.snapshot().State == Full {
		w.probe.reset()
		w.health.turned(Healthy, nil)
	}
	return t, nil
}

// one runs a job in its savepoint. It returns only errors that end the batch.
func (w *writer) one(t *tx, j *job) error {
	ctx := context.Background()
	if _, err := t.exec(ctx, "SAVEPOINT job"); err != nil {
		return err
	}
	writes, bytes := t.writes, t.bytes
	if err := j.run(t); err != nil {
		if poisons(err) {
			return err
		}
		j.err = refused(err)
		t.writes, t.bytes = writes, bytes
		if _, err := t.exec(ctx, "ROLLBACK TO job"); err != nil {
			return err
		}
	}
	_, err := t.exec(ctx, "RELEASE job")
	return err
}

// fail undoes the transaction; nothing of it was committed.
func (w *writer) fail(err error) error {
	w.note(err)
	w.rollback()
	return refused(err)
}

// rollback ends the transaction by ending the connection: whatever state SQLite
// left it in, the next batch starts clean.
func (w *writer) rollback() {
	// The transaction may be gone already, and closing rolls back anyway: an
	// error here changes nothing.
	_, _ = w.l.exec(context.Background(), "ROLLBACK")
	_ = w.l.close()
	w.l = nil
}

func (w *writer) noteForCheckpoint(jobs, bytes int) {
	w.sinceJobs += jobs
	w.sinceLen += bytes
	if w.sinceJobs >= checkpointJob || w.sinceLen >= checkpointLen {
		w.sinceJobs, w.sinceLen = 0, 0
		w.ckpt.poke()
	}
	// Under constant load the checkpointer never catches up with the end of the
	// log. Between two transactions there is little left to copy, and the next
	// one starts the log from the beginning.
	if w.ckpt.long.Swap(false) {
		// A checkpoint that fails is tried again by the next one.
		_ = w.l.each(context.Background(), ignoreRow, "PRAGMA wal_checkpoint(PASSIVE)")
	}
}

func (w *writer) snapshot() Stats {
	return Stats{Writes: w.writes.Load(), Bytes: w.bytes.Load(), Jobs: w.jobs.Load(), Batches: w.batches.Load()}
}
