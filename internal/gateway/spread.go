package gateway

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"io"
)

const (
	// lookAtPack is how much of a pack is looked at before it is stored.
	lookAtPack = 1 << 20
	// maxSpread is how large the objects of a pack may become to be stored one by one.
	maxSpread = 16 << 20
)

// spreads reports whether the objects of a pack may be stored one by one, as git
// does with few. They can be far larger than their pack: a delta of a few bytes
// stands for an object of any size, and neither the limit of a push nor that of a
// town sees it. What does not end within lookAtPack, or can't be read, stays a pack,
// as large as it came.
func spreads(pack []byte, most int64) bool {
	r := bytes.NewReader(pack)
	var head struct {
		Magic          [4]byte
		Version, Count uint32
	}
	if binary.Read(r, binary.BigEndian, &head) != nil || string(head.Magic[:]) != "PACK" {
		return false
	}
	total := int64(0)
	for range head.Count {
		n, err := nextObject(r, most-total)
		if total += n; err != nil || total > most {
			return false
		}
	}
	return true
}

// Kinds of objects in a pack that are differences to another.
const (
	packOffsetDelta = 6
	packRefDelta    = 7
)

// nextObject passes over an object and returns its size when it is stored alone.
// One larger than most is not read to its end.
func nextObject(r *bytes.Reader, most int64) (int64, error) {
	c, err := r.ReadByte()
	if err != nil {
		return 0, err
	}
	kind := c >> 4 & 7
	size, err := varint(r, uint64(c&15), 4, c)
	if err != nil || size > most {
		return size, err
	}
	switch kind {
	case packOffsetDelta:
		for c = 0x80; c&0x80 != 0 && err == nil; {
			c, err = r.ReadByte()
		}
	case packRefDelta:
		_, err = io.CopyN(io.Discard, r, 20)
	}
	if err != nil {
		return 0, err
	}
	z, err := zlib.NewReader(r) // reads no byte too many, for r gives single ones
	if err != nil {
		return 0, err
	}
	var start bytes.Buffer // of a difference: the sizes of both objects
	n, err := io.Copy(&start, io.LimitReader(z, 20))
	if err == nil {
		var rest int64
		rest, err = io.Copy(io.Discard, io.LimitReader(z, most+1))
		n += rest
	}
	if err != nil || kind != packOffsetDelta && kind != packRefDelta {
		return max(n, size), err
	}
	d := bytes.NewReader(start.Bytes())
	if _, err := varint(d, 0, 0, 0x80); err != nil {
		return n, err
	}
	whole, err := varint(d, 0, 0, 0x80)
	return max(n, size, whole), err
}

// varint reads the rest of a number of which the byte c was the begin.
func varint(r *bytes.Reader, n uint64, shift int, c byte) (int64, error) {
	for c&0x80 != 0 {
		var err error
		if c, err = r.ReadByte(); err != nil {
			return 0, err
		}
		if shift > 50 {
			return 0, io.ErrShortBuffer // no object is as large
		}
		n |= uint64(c&0x7f) << shift
		shift += 7
	}
	return int64(n), nil
}
