package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"gastown/internal/api"
)

// op describes an operation.
type op struct {
	method, path string
	id           string // operation id
	tag          string
	summary      string
	detail       string
	status       int   // of success; 0 means 200
	errors       []int // documented besides 401, 422, 429, 500 and 503
	long         bool
	optional     bool   // the body may be missing
	content      string // type of an answer that is no JSON
	upload       string // type of a body that is no JSON and that the handler reads itself
	stream       any    // the data of a stream of events
	raw          any    // type of a body that the handler decodes itself
	linesIn      bool   // the body is JSON lines, which the handler reads itself
	linesLimit   int64  // bytes of such a body that are read beforehand; 0: the handler reads it as it comes
	linesOut     bool   // the answer is JSON lines
	result       any    // type of a body that the handler encodes itself
}

const base = "/api/v1"

// body is an answer with a body.
type body[T any] struct{ Body T }

// none is an answer without a body.
type none struct{}

// add registers an operation and its handler.
func add[I, O any](s *Server, o op, handler func(context.Context, *I) (*O, error)) {
	h := s.describe(o)
	huma.Register(s.api, h, func(ctx context.Context, in *I) (*O, error) {
		out, err := handler(ctx, in)
		if err != nil {
			return nil, s.toProblem(err)
		}
		return out, nil
	})
}

func (s *Server) describe(o op) huma.Operation {
	h := huma.Operation{
		OperationID: o.id, Method: o.method, Path: base + o.path, Summary: o.summary, Description: o.detail, Tags: []string{o.tag},
		DefaultStatus: o.status, Security: []map[string][]string{{"bearer": {}}}, Responses: map[string]*huma.Response{},
		// The middleware has read the body already, within its limit and deadline.
		BodyReadTimeout: -1, MaxBodyBytes: -1, SkipValidateBody: o.raw != nil,
	}
	if h.DefaultStatus == 0 {
		h.DefaultStatus = http.StatusOK
	}
	schema := func(v any) *huma.Schema {
		t := reflect.TypeOf(v)
		return s.api.OpenAPI().Components.Schemas.Schema(t, true, t.Name())
	}
	problems := append([]int{401, 422, 429, 500, 503}, o.errors...)
	for _, code := range problems {
		h.Responses[strconv.Itoa(code)] = &huma.Response{
			Description: http.StatusText(code),
			Content:     map[string]*huma.MediaType{api.ProblemType: {Schema: schema(api.Problem{})}},
		}
	}
	ok := strconv.Itoa(h.DefaultStatus)
	if o.raw != nil {
		h.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: schema(o.raw)}}}
	}
	if o.optional {
		h.RequestBody = &huma.RequestBody{}
	}
	if o.result != nil {
		h.Responses[ok] = &huma.Response{Description: http.StatusText(h.DefaultStatus),
			Content: map[string]*huma.MediaType{"application/json": {Schema: schema(o.result)}}}
	}
	if o.content != "" {
		h.Responses[ok] = &huma.Response{Description: http.StatusText(h.DefaultStatus),
			Content: map[string]*huma.MediaType{o.content: {Schema: &huma.Schema{Type: "string", Format: "binary"}}}}
	}
	if o.upload != "" {
		h.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{o.upload: {Schema: &huma.Schema{Type: "string", Format: "binary"}}}}
		s.streamed[strings.ToUpper(o.method)+" "+h.Path] = true
	}
	if o.stream != nil {
		h.Responses[ok] = &huma.Response{Description: "Events; each data is a JSON document of this schema.",
			Content: map[string]*huma.MediaType{"text/event-stream": {Schema: schema(o.stream)}}}
	}
	lines := map[string]*huma.MediaType{api.LinesType: {Schema: &huma.Schema{Type: huma.TypeString}}}
	if o.linesIn {
		h.RequestBody = &huma.RequestBody{Required: true, Content: lines}
		pattern := strings.ToUpper(o.method) + " " + h.Path
		if s.streamed[pattern] = o.linesLimit == 0; o.linesLimit > 0 {
			s.limits[pattern] = o.linesLimit
		}
	}
	if o.linesOut {
		h.Responses[ok] = &huma.Response{Description: "JSON lines, the format of which docs/export.md describes.", Content: lines}
	}
	if o.long || o.stream != nil || o.linesIn && o.linesLimit == 0 || o.linesOut {
		s.long[strings.ToUpper(o.method)+" "+h.Path] = true
	}
	return h
}

// dropUnusedSchemas removes what the framework registers for errors of its own.
func (s *Server) dropUnusedSchemas() {
	m := s.api.OpenAPI().Components.Schemas.Map()
	maps.DeleteFunc(m, func(name string, _ *huma.Schema) bool { return name == "ErrorModel" || name == "ErrorDetail" })
}

var errUTF8 = errors.New("the body is not valid UTF-8")

// unmarshal refuses what encoding/json would silently repair.
func unmarshal(data []byte, v any) error {
	if !utf8.Valid(data) {
		return errUTF8
	}
	return json.Unmarshal(data, v)
}

// decode reads a body that the framework does not: strictly, and once.
func decode(data []byte, v any) error {
	if !utf8.Valid(data) {
		return badBody(errUTF8.Error())
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return badBody(jsonProblem(err))
	}
	// More would take a closing bracket for an end.
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return badBody("there is more after the JSON document")
	}
	return nil
}

func badBody(why string) error {
	return fromHuma(&huma.ErrorModel{Status: http.StatusUnprocessableEntity, Errors: []*huma.ErrorDetail{{Location: "body", Message: why}}})
}

// jsonProblem says what is wrong with a document, without quoting it.
func jsonProblem(err error) string {
	var ute *json.UnmarshalTypeError
	if errors.As(err, &ute) {
		return fmt.Sprintf("%s must be %s, not %s", ute.Field, ute.Type, ute.Value)
	}
	var se *json.SyntaxError
	if errors.As(err, &se) {
		return fmt.Sprintf("not JSON: %s at byte %d", se.Error(), se.Offset)
	}
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return "unknown field " + field
	}
	return "not a JSON document"
}

func size(n int64) string {
	if n >= 1<<20 {
		return strconv.FormatInt(n>>20, 10) + " MiB"
	}
	return strconv.FormatInt(n>>10, 10) + " KiB"
}

// page cuts a sorted slice after a cursor. key gives each item's cursor.
func page[T any](all []T, after string, limit int, key func(T) string) (items []T, next string) {
	from := 0
	if after != "" {
		from, _ = slices.BinarySearchFunc(all, after, func(v T, c string) int { return strings.Compare(key(v), c) })
		if from < len(all) && key(all[from]) == after {
			from++
		}
	}
	all = all[from:]
	if len(all) > limit {
		return all[:limit], key(all[limit-1])
	}
	return all, ""
}
