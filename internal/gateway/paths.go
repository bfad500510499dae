package gateway

import (
	"net/http"
	"net/url"
	"strings"

	"gastown/internal/errs"
)

// addressOf finds what is asked of a model's API, with the API's version before it
// or without; rest is a path as split returns it. paid says that the answer costs
// tokens.
//
// Only what an agent needs to talk with a model is forwarded. The key of a
// provider opens more, such as files and batches of everybody who uses it, and
// work of which no answer says what it used.
func addressOf(method, rest string) (paid bool, err error) {
	rest = strings.TrimPrefix(rest, "v1/")
	switch method + " " + rest {
	case "POST chat/completions", "POST completions", "POST responses", "POST responses/compact", "POST messages", "POST embeddings":
		return true, nil
	case "POST responses/input_tokens", "POST messages/count_tokens", "GET models":
		return false, nil
	}
	model, ok := strings.CutPrefix(strings.TrimPrefix(rest, "v1beta/"), "models/") // v1beta is Gemini's
	if ok && method == http.MethodGet && model != "" {
		return false, nil
	}
	if _, verb, isCall := strings.Cut(model, ":"); ok && isCall && method == http.MethodPost {
		switch verb {
		case "generateContent", "streamGenerateContent", "embedContent":
			return true, nil
		case "countTokens":
			return false, nil
		}
	}
	return false, errs.New(errs.NotFound, "the gateway does not forward this address of the model's API").
		WithHint("it forwards chat/completions, responses, messages, embeddings, models and generateContent")
}

// cleanQuery leaves out of a query what would say who asks, in place of a header,
// and what would have the API leave the usage out of its answer.
func cleanQuery(raw string) string {
	var kept []string
	for pair := range strings.SplitSeq(raw, "&") {
		name, _, _ := strings.Cut(pair, "=")
		plain, err := url.QueryUnescape(name)
		switch strings.TrimPrefix(strings.ToLower(plain), "$") {
		case "":
			continue
		case "key", "api_key", "api-key", "access_token", "oauth_token", "quotauser", "fields", "callback":
			continue
		}
		if err == nil {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&")
}
