package scrub

import (
	"context"
	"fmt"
	"log/slog"
)

// Handler is a slog.Handler whose records have no secrets.
type Handler struct {
	set  *Set
	next slog.Handler
}

// NewHandler stands before next.
func NewHandler(set *Set, next slog.Handler) *Handler { return &Handler{set: set, next: next} }

// Enabled asks the handler behind.
func (h *Handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

// Handle passes on what is left of a record.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, r.Level, h.set.Text(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(h.attr(a))
		return true
	})
	return h.next.Handle(ctx, clean)
}

// WithAttrs cleans the attributes, once.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		clean[i] = h.attr(a)
	}
	return &Handler{h.set, h.next.WithAttrs(clean)}
}

// WithGroup passes the group on.
func (h *Handler) WithGroup(name string) slog.Handler { return &Handler{h.set, h.next.WithGroup(name)} }

func (h *Handler) attr(a slog.Attr) slog.Attr {
	v := a.Value.Resolve()
	switch v.Kind() {
	case slog.KindString:
		v = slog.StringValue(h.set.Text(v.String()))
	case slog.KindGroup:
		group := v.Group()
		clean := make([]slog.Attr, len(group))
		for i, g := range group {
			clean[i] = h.attr(g)
		}
		v = slog.GroupValue(clean...)
	case slog.KindAny:
		v = slog.StringValue(h.set.Text(plain(v.Any())))
	}
	return slog.Attr{Key: a.Key, Value: v}
}

// plain writes a value as a log does.
func plain(v any) string {
	if err, ok := v.(error); ok {
		return err.Error()
	}
	return fmt.Sprintf("%+v", v)
}
