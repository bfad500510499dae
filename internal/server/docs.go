package server

import (
	"embed"
	"encoding/json"
	"net/http"
)

//go:embed docs/index.html docs/docs.js docs/docs.css
var docsFiles embed.FS

// docsPolicy lets the page load its own two files and the description, no more.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func (s *Server) registerDocs() {
	spec, err := json.Marshal(s.api.OpenAPI())
	if err != nil {
		panic(err) // made of our own types
	}
	s.mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		// The client may be gone; there is nobody else to tell.
		_, _ = w.Write(spec)
	})
	for path, file := range map[string][2]string{
		"/docs":          {"docs/index.html", "text/html; charset=utf-8"},
		"/docs/docs.js":  {"docs/docs.js", "text/javascript; charset=utf-8"},
		"/docs/docs.css": {"docs/docs.css", "text/css; charset=utf-8"},
	} {
		data, err := docsFiles.ReadFile(file[0])
		if err != nil {
			panic(err) // embedded
		}
		s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", file[1])
			w.Header().Set("Content-Security-Policy", docsPolicy)
			w.Header().Set("X-Frame-Options", "DENY")
			_, _ = w.Write(data) // as above
		})
	}
}
