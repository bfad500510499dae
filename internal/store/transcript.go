package store

const (
	// MaxTranscript is how much one epoch of a run may write, in bytes of bodies
	// with ChunkCost for each chunk; what comes after that is not kept.
	MaxTranscript = 32 << 20
	// ChunkCost is what a chunk counts beside its body.
	ChunkCost = 256
	// fullSeq is the number of the mark that ends a transcript which reached
	// MaxTranscript. No runner counts that far.
	fullSeq = 1 << 52
)

// TranscriptEnd is the mark that is put at the end of a transcript when c is the first
// chunk that finds no room in it. It is there once, and keeps out whatever follows.
func TranscriptEnd(c Chunk) Chunk {
	c.Seq, c.Kind = fullSeq, "lifecycle"
	c.Body = []byte(`{"kind":"lifecycle","status":"lost","text":"the transcript reached 32 MiB; what follows is not kept"}`)
	return c
}

// Room is how much room transcripts have within one call of AppendTranscript.
type Room struct {
	used map[transcriptKey]int64
	full map[transcriptKey]bool
}

type transcriptKey struct {
	town, run string
	epoch     int64
}

// Take answers with the chunk to store: c itself, the mark, or nothing
// (false). read is asked once per transcript for its size and whether the mark
// is there.
func (b *Room) Take(c Chunk, read func() (size int64, full bool, err error)) (Chunk, bool, error) {
	if b.used == nil {
		b.used, b.full = map[transcriptKey]int64{}, map[transcriptKey]bool{}
	}
	k := transcriptKey{c.Town, c.Run, c.Epoch}
	if _, known := b.used[k]; !known {
		size, full, err := read()
		if err != nil {
			return c, false, err
		}
		b.used[k], b.full[k] = size, full
	}
	if b.full[k] {
		return c, false, nil
	}
	b.used[k] += int64(len(c.Body)) + ChunkCost
	if b.used[k] > MaxTranscript || c.Seq >= fullSeq {
		b.full[k] = true
		return TranscriptEnd(c), true, nil
	}
	return c, true, nil
}
