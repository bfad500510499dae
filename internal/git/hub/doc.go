// Package hub keeps the server's own bare repository of every rig, at
// <root>/<town>/<rig>.git.
//
// Sandboxes clone from it and push to it through the git gateway; only this
// package talks to the upstream remote, with the rig's credential. Nothing here
// runs git in a directory that a sandbox can write.
//
// References in a hub repository:
//
//	refs/heads/<target>            the target branch as last fetched from upstream, or landed there
//	refs/heads/gt/<agent>/<bead>   an agent's branch; the run that owns it pushes it
//	refs/tags/*                    upstream's tags on the fetched history
//	refs/gastown/wip/<bead>/<epoch>  a run's last checkpoint
//	refs/gastown/merge/<bead>/<n>    a merge candidate, made here
//	refs/upstream/heads/<branch>   what upstream is known to hold; never shown to sandboxes
//
// HEAD names the target that the rig was added with. A sandbox fetches
// refs/heads/<target>, its own references, or any commit by its id. A target
// named gt, or below gt/, is refused: that space belongs to agents.
//
// Credentials: Remote.Secret names a vault entry, see package credential. git gets
// a login through a credential helper bound to the remote's own scheme and host and
// the environment of this one call, so it is in no argv, file or URL; with a
// credential no redirect is followed. ssh gets the rig's key from an agent of ours
// that lives as long as the call, and knows the host keys that were recorded for the
// rig: the first one met is, see HostsName. Without a credential ssh uses the
// server's own keys and agent.
//
// Errors carry a kind: errs.Unavailable (upstream can't be reached, worth a
// retry), errs.Forbidden (credentials, protected branch), errs.NotFound (no such
// repository, branch or commit), errs.Conflict (a state that a person must
// change), errs.Invalid (an argument that can never work).
//
// Every call takes a context and adds a deadline of its own. A Hub is safe for
// concurrent use; what changes one repository together with upstream runs one
// at a time per repository, the rest relies on git's own locks. Calls are safe
// to repeat after a crash at any point.
package hub
