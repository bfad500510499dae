package gateway

import (
	"cmp"
	"encoding/json"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"gastown/internal/api"
	"gastown/internal/errs"
)

// The kinds of providers. They differ in how the key is sent and in the wire
// formats that their API has; see Kind.
const (
	KindOpenAI           = "openai"            // OpenAI itself
	KindAnthropic        = "anthropic"         // Anthropic itself, and APIs made like it
	KindGemini           = "gemini"            // Google's Gemini API, and APIs made like it
	KindOpenAICompatible = "openai-compatible" // APIs made like OpenAI's
)

// Kind is what is common to the providers of a kind.
type Kind struct {
	Name    string
	BaseURL string   // the default; "" when one must be given
	Wires   []string // what it speaks; an API made like another need not have all
	header  string   // of the key; "" is a bearer token
}

// Kinds returns the kinds of providers that there are.
func Kinds() []Kind {
	return []Kind{
		{Name: KindOpenAI, BaseURL: "https://api.openai.com/v1", Wires: []string{api.WireChat, api.WireResponses}},
		{Name: KindAnthropic, BaseURL: "https://api.anthropic.com", Wires: []string{api.WireMessages}, header: "X-Api-Key"},
		{Name: KindGemini, BaseURL: "https://generativelanguage.googleapis.com", Wires: []string{api.WireGemini}, header: "X-Goog-Api-Key"},
		{Name: KindOpenAICompatible, Wires: []string{api.WireChat, api.WireResponses}},
	}
}

func kindOf(name string) (Kind, bool) {
	for _, k := range Kinds() {
		if k.Name == name {
			return k, true
		}
	}
	return Kind{}, false
}

// Speaks reports whether a provider has a wire format.
func (p Provider) Speaks(wire string) bool {
	k, ok := kindOf(p.Kind)
	return ok && slices.Contains(k.Wires, wire)
}

// AddHint is the command that configures a provider.
const AddHint = "gastown provider add openai|anthropic|gemini|openai-compatible NAME [--base-url URL] --key-file FILE"

const (
	providerDir = "provider"
	maxModels   = 200
	maxModel    = 200
	maxProvider = 64 << 10 // bytes of a key
)

// Provider is a model API and the key for it.
type Provider struct {
	Kind      string
	Name      string
	BaseURL   string // without a slash at its end
	Key       string // "" for an API that asks for none
	Models    []string
	AllowHTTP bool             // plain http to another machine was asked for
	Prices    map[string]Price // by the model's name; see priceOf for others
}

// LogValue leaves the key out of logs.
func (p Provider) LogValue() slog.Value {
	return slog.GroupValue(slog.String("kind", p.Kind), slog.String("name", p.Name), slog.String("base_url", p.BaseURL))
}

// String leaves the key out of text.
func (p Provider) String() string { return p.Kind + " " + p.Name }

// stored is a Provider as it lies in the vault.
type stored struct {
	Kind      string           `json:"kind"`
	Name      string           `json:"name"`
	BaseURL   string           `json:"base_url"`
	Key       string           `json:"key,omitempty"`
	Models    []string         `json:"models,omitempty"`
	AllowHTTP bool             `json:"allow_http,omitempty"`
	Prices    map[string]Price `json:"prices,omitempty"`
}

// Secrets is where providers are kept.
type Secrets interface {
	Put(name string, value []byte) error
	Get(name string) ([]byte, error)
	Delete(name string) error
	List(prefix string) ([]string, error)
}

// Providers are the configured model APIs. Changes hold at once, for all
// servers on the same vault.
type Providers struct{ secrets Secrets }

// NewProviders returns the providers that secrets hold.
func NewProviders(s Secrets) *Providers { return &Providers{secrets: s} }

var (
	providerRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)
	modelRE    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$`)
)

// Put stores a provider, replacing one of the same name.
func (p *Providers) Put(v Provider) error {
	kind, ok := kindOf(v.Kind)
	if !ok {
		return errs.New(errs.Invalid, "%.40q is no kind of provider", v.Kind).
			WithHint("use %s, %s, %s or %s", KindOpenAI, KindAnthropic, KindGemini, KindOpenAICompatible)
	}
	if !providerRE.MatchString(v.Name) {
		return errs.New(errs.Invalid, "%.60q is no name for a provider", v.Name).
			WithHint("use 1 to 40 of a-z, 0-9 and '-', beginning and ending with a letter or digit")
	}
	v.BaseURL = strings.TrimRight(cmp.Or(v.BaseURL, kind.BaseURL), "/")
	if v.BaseURL == "" {
		return errs.New(errs.Invalid, "a provider of kind %s needs a base URL", v.Kind).WithHint("for example https://models.example/v1")
	}
	if _, err := parseBase(v.BaseURL, v.AllowHTTP); err != nil {
		return err
	}
	v.Key = strings.TrimSpace(v.Key)
	if len(v.Key) > maxProvider || strings.ContainsFunc(v.Key, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return errs.New(errs.Invalid, "the key has characters that a header can't carry, or is too long")
	}
	if len(v.Models) > maxModels {
		return errs.New(errs.Invalid, "a provider lists at most %d models", maxModels)
	}
	for _, m := range v.Models {
		if len(m) > maxModel || !modelRE.MatchString(m) {
			return errs.New(errs.Invalid, "%.60q is no name of a model", m)
		}
	}
	if err := checkPrices(v.Prices); err != nil {
		return err
	}
	b, err := json.Marshal(stored(v))
	if err != nil {
		return errs.Wrap(errs.Internal, err, "storing the provider %s", v.Name)
	}
	return p.secrets.Put(providerDir+"/"+v.Name, b)
}

func checkPrices(prices map[string]Price) error {
	if len(prices) > maxModels {
		return errs.New(errs.Invalid, "a provider lists at most %d prices", maxModels)
	}
	for m, p := range prices {
		if len(m) > maxModel || !modelRE.MatchString(m) {
			return errs.New(errs.Invalid, "%.60q is no name of a model", m)
		}
		for _, n := range []int64{p.Input, p.Output, p.CacheRead, p.CacheWrite} {
			if n < 0 || n > MaxPrice {
				return errs.New(errs.Invalid, "the price of %s is not from 0 to 1000 dollars for a million tokens", m)
			}
		}
	}
	return nil
}

// Get returns a provider with its key.
func (p *Providers) Get(name string) (Provider, error) {
	if !providerRE.MatchString(name) {
		return Provider{}, noProvider(name)
	}
	b, err := p.secrets.Get(providerDir + "/" + name)
	if errs.Is(err, errs.NotFound) {
		return Provider{}, noProvider(name)
	}
	if err != nil {
		return Provider{}, err
	}
	var s stored
	if json.Unmarshal(b, &s) != nil || s.Name != name {
		// The decoder's text might quote the key.
		return Provider{}, errs.New(errs.Internal, "the stored provider %s can't be read", name).WithHint("add it again")
	}
	return Provider(s), nil
}

// List returns the providers by name, without their keys. One that can't be
// read is left out: Get says why.
func (p *Providers) List() ([]Provider, error) {
	names, err := p.secrets.List(providerDir + "/")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	out := []Provider{}
	for _, n := range names {
		v, err := p.Get(strings.TrimPrefix(n, providerDir+"/"))
		if err != nil {
			continue
		}
		v.Key = ""
		out = append(out, v)
	}
	return out, nil
}

// Delete removes a provider.
func (p *Providers) Delete(name string) error {
	if _, err := p.Get(name); errs.Is(err, errs.NotFound) {
		return err
	}
	return p.secrets.Delete(providerDir + "/" + name)
}

func noProvider(name string) error {
	return errs.New(errs.NotFound, "no model provider %.60q", name).WithHint("%s", AddHint)
}

// parseBase checks a base URL: https, or http to this machine, or http where
// it was allowed in so many words. The URL is not repeated in the error: it may
// hold a key in the wrong place.
func parseBase(raw string, allowHTTP bool) (*url.URL, error) {
	bad := func(why string) *errs.Error { return errs.New(errs.Invalid, "the base URL can't be used: %s", why) }
	if len(raw) > 2048 {
		return nil, bad("it is longer than 2048 bytes")
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, bad("it can't be parsed")
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, bad("it does not begin with https://")
	case u.Hostname() == "" || u.Opaque != "":
		return nil, bad("it names no host")
	case u.User != nil:
		return nil, bad("it has credentials in it").WithHint("give the key as key")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return nil, bad("it has a query or a fragment")
	case u.Scheme == "http" && !allowHTTP && !loopback(u.Hostname()):
		return nil, bad("over plain http the key would travel unprotected").
			WithHint("use https, or allow_http (--allow-http) if the network is yours")
	}
	for part := range strings.SplitSeq(u.Path, "/") {
		if part == ".." || part == "." {
			return nil, bad("its path has . or .. in it")
		}
	}
	return u, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
