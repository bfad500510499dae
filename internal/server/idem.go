package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

const maxKey = 200

// IdemKey is the parameter of creating calls. It is exported for the framework,
// which passes over others when they are embedded.
type IdemKey struct {
	Key string `header:"Idempotency-Key" maxLength:"200" doc:"Any text that is unique for this request: a repeat gets the first answer instead of acting twice."`
}

// check validates the key, which may be empty.
func (k IdemKey) check() error {
	if len(k.Key) > maxKey {
		return errs.New(errs.Invalid, "the Idempotency-Key is longer than %d bytes", maxKey)
	}
	for _, c := range []byte(k.Key) {
		if c < ' ' || c > '~' {
			return errs.New(errs.Invalid, "the Idempotency-Key may only have printable ASCII characters")
		}
	}
	return nil
}

// digest identifies a request: the same key with another request is a conflict.
func digest(ctx context.Context, parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	h.Write(callOf(ctx).body)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// raw is an answer that is ready to be sent, maybe from the record.
type raw struct {
	Status      int
	ContentType string `header:"Content-Type"`
	Replayed    string `header:"Idempotency-Replayed" doc:"true on an answer from the record."`
	ETag        string `header:"ETag"`
	Body        []byte
}

func rawAnswer(status int, body []byte, replayed bool) *raw {
	out := &raw{Status: status, ContentType: "application/json", Body: body}
	if replayed {
		out.Replayed = "true"
	}
	return out
}

func encode(v any) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // api types always encode
	}
	return buf.Bytes()
}

// commit hands an input to a town and answers with what view makes of the town
// that the input left. With a key the answer is recorded in the same commit.
func (s *Server) commit(ctx context.Context, townID string, in town.Input, k IdemKey, hash string, status int,
	view func(*town.Town) any) (*raw, error) {
	if k.Key != "" {
		status, body, replayed, err := s.hall.DoIdem(ctx, townID, in, k.Key, hash,
			func(t *town.Town) (int, []byte) { return status, encode(view(t)) })
		if err != nil {
			return nil, err
		}
		return rawAnswer(status, body, replayed), nil
	}
	if err := s.hall.Do(ctx, townID, in); err != nil {
		return nil, err
	}
	var body []byte
	if err := s.view(ctx, townID, func(t *town.Town) error { body = encode(view(t)); return nil }); err != nil {
		return nil, err
	}
	return rawAnswer(status, body, false), nil
}

// recorded answers a repeat from the record of a scope: a town's id, or "" for
// the server's own.
func (s *Server) recorded(ctx context.Context, scope string, k IdemKey, hash string) (*raw, error) {
	if k.Key == "" {
		return nil, nil
	}
	rec, ok, err := s.store.Idem(ctx, scope, k.Key)
	if err != nil || !ok {
		return nil, err
	}
	if rec.Hash != hash {
		return nil, errs.New(errs.Conflict, "this Idempotency-Key was used for another request").WithHint("use a fresh key for each request")
	}
	return rawAnswer(rec.Status, rec.Body, true), nil
}

// record keeps the answer to a request that changed no town.
func (s *Server) record(ctx context.Context, k IdemKey, hash string, v any) (*raw, error) {
	out := rawAnswer(http.StatusCreated, encode(v), false)
	if k.Key == "" {
		return out, nil
	}
	return out, s.store.PutIdem(ctx, "", store.Idem{Key: k.Key, Hash: hash, Status: out.Status, Body: out.Body, At: s.now().UnixMilli()})
}
