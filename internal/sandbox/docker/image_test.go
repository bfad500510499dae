package docker

import "testing"

func TestAnImageIsNamedByDigestWhereARegistryGaveIt(t *testing.T) {
	t.Parallel()
	const id, digest = "sha256:1111", "@sha256:2222"
	for _, c := range []struct {
		name    string
		digests []string
		want    string
	}{
		{"gastown:local", nil, id},
		{id, nil, id},
		{"registry.example:5000/team/gastown:1.2", []string{"registry.example:5000/team/gastown" + digest}, "registry.example:5000/team/gastown" + digest},
		{"registry.example:5000/team/gastown", []string{"registry.example:5000/team/gastown" + digest}, "registry.example:5000/team/gastown" + digest},
		{"gastown" + digest, []string{"other@sha256:3333", "gastown" + digest}, "gastown" + digest},
		{"gastown:local", []string{"other@sha256:3333"}, id},
	} {
		if got := pinned(c.name, id, c.digests); got != c.want {
			t.Errorf("%s of %v is %s, want %s", c.name, c.digests, got, c.want)
		}
	}
}
