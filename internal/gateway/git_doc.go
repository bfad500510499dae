// Package gateway is what a sandbox may reach: git repositories and model APIs.
// A sandbox holds no credential; what it may do is decided per request, here.
//
// Git (NewGit) is smart HTTP onto the hub's bare repositories. A GitPolicy
// authenticates the request and returns a GitGrant: which repository, and which
// references may be pushed. Fetches speak protocol v2 and show everything but
// upstream's state and other beads' checkpoints; any commit may be fetched by
// its id, since a town is one trust domain.
//
// A push is judged before git sees it: its command list is parsed here and
// handed on re-encoded, so that receive-pack gets only what was understood.
// If one command is refused, the whole push is, with a message that git shows
// as "remote: …". Deletions, signed pushes and push options are refused always.
// What is allowed is applied atomically, after fsck of the pushed objects. If
// any reference of a push may not be rewritten, none in that push may.
//
// Requests are bounded in size, number and time (GitLimits). Nothing in this
// package starts a sandbox or changes a town.
package gateway
