package town

import (
	"slices"
	"strings"
	"testing"

	"gastown/internal/errs"
)

func TestWhatAHostRuleOpens(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		list, host string
		open       bool
	}{
		{"registry.npmjs.org", "registry.npmjs.org:443", true}, {"registry.npmjs.org", "Registry.NPMjs.org.:80", true},
		{"registry.npmjs.org", "registry.npmjs.org:8443", false}, {"registry.npmjs.org", "xregistry.npmjs.org:443", false},
		{"registry.npmjs.org", "a.registry.npmjs.org:443", false}, {"registry.npmjs.org", "registry.npmjs.org.evil.example:443", false},
		{"*.example.org", "a.example.org:443", true}, {"*.example.org", "a.b.example.org:443", true},
		{"*.example.org", "example.org:443", false}, {"*.example.org", "aexample.org:443", false},
		{"*.example.org:8080", "a.example.org:8080", true}, {"*.example.org:8080", "a.example.org:443", false},
		{"*", "anything.example:443", true}, {"*", "anything.example:22", false}, {"*", "10.0.0.1:443", false},
		{"*", "[::1]:443", false}, {"127.0.0.2:8080", "127.0.0.2:8080", true}, {"127.0.0.2:8080", "127.0.0.2:443", false},
		{"127.0.0.2", "[::ffff:127.0.0.2]:443", true}, {"[::1]:80", "[0:0::1]:80", true}, {"a.test+private", "a.test:80", true},
		{"", "a.test:443", false},
	} {
		rules, err := ParseHosts(c.list)
		if err != nil {
			t.Fatal(err)
		}
		h, err := ParseHost(c.host)
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.ContainsFunc(rules, func(r HostRule) bool { return r.Allows(h) }); got != c.open {
			t.Errorf("%q opens %q: %v", c.list, c.host, got)
		}
	}
}

func TestHostsThatCanBeReadInTwoWaysAreRefused(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", ":443", "a.test", "a.test:", "a.test:0", "a.test:65536", "a.test:+443", "a.test:0443", "a.test:443:443", "a..test:443", ".a.test:443",
		"a.test..:443", "-a.test:443", "a-.test:443", "a b.test:443", "a.test/x:443", "a.test@b.test:443", "a%2etest:443", "bücher.test:443",
		"ⓔxample.test:443", "127.1:443", "2130706433:443", "0x7f000001:443", "0177.0.0.1:443", "127.0.0.1.:443", "1.2.3.4.5:443", "a.0x1:443",
		"[::1%25lo]:443", "[::1%lo]:443", "[::1:443", "::1:443", "[127.0.0.1]:443", "[a.test]:443", "a\x00.test:443", "a.test:443\r\n",
		strings.Repeat("a", 64) + ".test:443", strings.Repeat("a.", 130) + "test:443",
	} {
		if h, err := ParseHost(s); err == nil {
			t.Errorf("%q was read as %q", s, h)
		}
	}
	for _, s := range []string{"https://a.test", "a.test/x", "*.", "a.*.test", "*a.test", "**.test", "*+private", "*.127.0.0.1", "127.1", "bücher.test", "a.test:http"} {
		if _, err := ParseHosts(s); err == nil {
			t.Errorf("%q is an entry", s)
		}
	}
}

func TestHostsAreAddedToARigAndTakenAway(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.do(SetTown{By: "ann", Set: Settings{"network.allow": "a.test"}})
	d.do(SetRig{By: "ann", Rig: "web", Allow: []string{"*.b.test:8080", "A.test."}})
	if got := d.town.AllowedHosts("web"); !slices.Equal(got, []string{"a.test", "*.b.test:8080"}) {
		t.Fatalf("the list is %v: what the town opens stays open", got)
	}
	d.do(SetRig{By: "ann", Rig: "web", Deny: []string{"a.test"}})
	if got := d.town.AllowedHosts("web"); !slices.Equal(got, []string{"*.b.test:8080"}) {
		t.Fatalf("the list is %v", got)
	}
	for _, in := range []SetRig{
		{By: "ann", Rig: "web", Deny: []string{"a.test"}}, {By: "ann", Rig: "web", Allow: []string{"x y"}},
		{By: "ann", Rig: "web", Allow: []string{"c.test"}, Set: Settings{"network.allow": ""}},
	} {
		if err := d.town.Handle(d.now, in); err == nil {
			t.Errorf("%+v was taken", in)
		}
	}
	h, err := ParseHost("other.test:8443")
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.town.HostAccess("web", h)
	if !errs.Is(err, errs.Forbidden) || !strings.Contains(err.Error(), "gastown rig set web --town acme --allow-host 'other.test:8443'") {
		t.Errorf("the refusal is %v", err)
	}
}

func FuzzHosts(f *testing.F) {
	for _, s := range []string{"a.test:443", "*.a.test+private", "[::1]:80", "127.0.0.1", "*", "a%2e:1", "xn--bcher-kva.test", "0x7f.1:80", "[::ffff:1.2.3.4]:443", ","} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, list, host string) {
		rules, err := ParseHosts(list)
		if err == nil {
			again, err := ParseHosts(hostsText(rules))
			if err != nil || !slices.Equal(rules, again) {
				t.Fatalf("%q is written as %q, which is read as %v, %v", list, hostsText(rules), again, err)
			}
		}
		h, err := ParseHost(host)
		if err != nil {
			return
		}
		if again, err := ParseHost(h.String()); err != nil || again != h {
			t.Fatalf("%q is %q, which is %v, %v", host, h, again, err)
		}
		if own, err := ParseHosts(h.Entry()); err != nil || len(own) != 1 || !own[0].Allows(h) {
			t.Fatalf("%q does not open %q: %v", h.Entry(), h, err)
		}
		for _, r := range rules {
			if r.Allows(h) && !r.IP.IsValid() && strings.ContainsAny(h.Name, "%:[]@/ ") {
				t.Fatalf("%q opens %q", r, h)
			}
		}
	})
}
