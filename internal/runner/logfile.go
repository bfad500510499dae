package runner

import (
	"bytes"
	"io"
	"os"
	"sync"
)

// A runner's log is cut to its newest logKept bytes when a line would bring it
// over logLimit.
const (
	logLimit = 4 << 20
	logKept  = 1 << 20
)

// cappedLog writes to a file that it keeps bounded, in place: whoever else has
// the file open for appending, as a panic of this process does, goes on at the
// new end. The runner does it, not who started it, because it outlives its server.
type cappedLog struct {
	limit, keep int64

	mu sync.Mutex // held during a write; guards the fields below
	f  *os.File
	no bool // the file can't be cut
}

// CapLog returns where a log to w should be written. A file that is open for
// reading, too, is kept below a few MiB; anything else is returned as it is: a
// file that a person opened for a log is theirs.
func CapLog(w io.Writer) io.Writer {
	f, ok := w.(*os.File)
	if !ok {
		return w
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return w
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); err != nil && err != io.EOF {
		return w // for writing only
	}
	return &cappedLog{limit: logLimit, keep: logKept, f: f}
}

// Write implements io.Writer.
func (l *cappedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.no {
		if err := l.roomLocked(int64(len(p))); err != nil {
			l.no = true // the lines matter more than the bound
			return l.f.Write(append([]byte("the log can't be kept short any more: "+err.Error()+"\n"), p...))
		}
	}
	return l.f.Write(p)
}

// roomLocked cuts the file when n more bytes are too many. It begins anew with
// whole lines.
func (l *cappedLog) roomLocked(n int64) error {
	st, err := l.f.Stat()
	if err != nil || st.Size()+n <= l.limit {
		return err
	}
	tail := make([]byte, min(l.keep, st.Size()))
	got, err := l.f.ReadAt(tail, st.Size()-int64(len(tail)))
	if err != nil && err != io.EOF {
		return err
	}
	_, tail, _ = bytes.Cut(tail[:got], []byte("\n"))
	if err := l.f.Truncate(0); err != nil {
		return err
	}
	// Where the file is not open for appending, the next byte would leave a hole.
	if _, err := l.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err = l.f.Write(append([]byte("the log became too long: what came before is gone\n"), tail...))
	return err
}
