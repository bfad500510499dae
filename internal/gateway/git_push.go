package gateway

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git"
	"gastown/internal/git/hub"
)

const (
	maxShallow = 1000
	// pushTime bounds one push.
	pushTime = 30 * time.Minute
	// listBytes bounds the command list: its lines at their usual length, with room.
	listBytes = 1 << 20
	// maxReport bounds what receive-pack may answer, progress included.
	maxReport = 4 << 20
	// maxObject bounds what git takes from memory at once. An object that is a
	// difference is made in memory, however small its pack is.
	maxObject = "1g"
)

func (c *gitCall) pushCmd(force bool, args ...string) git.Cmd {
	cmd := git.Cmd{
		Dir:  c.dir,
		Env:  []string{"GIT_ALLOC_LIMIT=" + maxObject},
		Args: append(append([]string{"receive-pack", "--stateless-rpc"}, args...), c.dir),
		Config: append(c.grant.hidden(),
			git.Setting{Key: "safe.directory", Value: c.dir},
			git.Setting{Key: "receive.fsckObjects", Value: "true"},
			git.Setting{Key: "core.bigFileThreshold", Value: "8m"}, // a larger file is not held in memory, however well it packs
			git.Setting{Key: "receive.maxInputSize", Value: fmt.Sprint(c.lim.PackBytes)},
			git.Setting{Key: "receive.denyDeletes", Value: "true"},
			git.Setting{Key: "receive.denyNonFastForwards", Value: fmt.Sprint(!force)},
			git.Setting{Key: "receive.shallowUpdate", Value: "false"},
			git.Setting{Key: "receive.advertisePushOptions", Value: "false"},
			git.Setting{Key: "receive.autogc", Value: "false"},
		),
	}
	return cmd
}

// push reads the commands before anything runs. Only a push that is allowed
// whole reaches receive-pack.
func (c *gitCall) push() error {
	body, err := c.body(c.lim.PackBytes + listBytes)
	if err != nil {
		return err
	}
	in := bufio.NewReader(body)
	list, err := readCommands(&boundedReader{r: in, left: listBytes}, commandLimits{Commands: c.lim.Commands, Shallow: maxShallow})
	if err != nil {
		c.drain(in)
		return c.refuseList(list, err)
	}
	c.header(receivePack + "-result")
	if len(list.Commands) == 0 {
		// The probe that git sends before a chunked push; anything else without commands is a no-op too.
		c.drain(in)
		return nil
	}
	reasons, force := c.grant.judge(list.Commands)
	room, err := c.room()
	if err != nil {
		return err
	}
	if room <= 0 {
		for _, cmd := range list.Commands {
			reasons[cmd.Ref] = fmt.Sprintf("the repositories of this town take more than their limit of %d MiB (hub.max_mb)", c.grant.MaxBytes>>20)
		}
	}
	if len(reasons) > 0 {
		c.drain(in)
		c.log.Info("push refused", "rig", c.grant.ID.String(), "refs", len(list.Commands), "first", sortedKeys(reasons)[0])
		_, _ = c.w.Write(list.refusal(reasons, c.grant.explain(reasons))) // the client may have gone away
		return nil
	}
	cmd := c.pushCmd(force)
	cmd.Config = append(cmd.Config, git.Setting{Key: "receive.maxInputSize", Value: fmt.Sprint(min(c.lim.PackBytes, room))}) // the last one counts
	pack := make([]byte, lookAtPack)
	n, err := io.ReadFull(in, pack) // whatever ended it comes again, for receive-pack
	if pack = pack[:n]; err == nil || !spreads(pack, min(maxSpread, room)) {
		cmd.Config = append(cmd.Config, git.Setting{Key: "receive.unpackLimit", Value: "1"})
	}
	cmd.Stdin = io.MultiReader(bytes.NewReader(list.encode()), bytes.NewReader(pack), in)
	cmd.MaxOut = maxReport
	// A client that goes away ends the input, and with it git. It is not killed:
	// one that dies while it locks a reference leaves the lock behind.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.r.Context()), pushTime)
	defer cancel()
	out, err := c.hub.Do(ctx, c.dir, cmd)
	c.drain(in)
	if hub.LockedOut(string(out.Stdout)) || hub.LockedOut(out.Stderr) {
		// The client's next try succeeds if the lock's owner is dead.
		if err := c.hub.SweepLocks(c.grant.ID); err != nil {
			c.log.Warn("looking for stale locks", "rig", c.grant.ID.String(), "err", err)
		}
	}
	if err != nil && len(out.Stdout) == 0 {
		return upErr(err)
	}
	// With an error receive-pack has reported it in its own output.
	_, _ = c.w.Write(out.Stdout) // the client may have gone away
	return nil
}

// room is how many bytes the town may still add to its repositories.
func (c *gitCall) room() (int64, error) {
	if c.grant.MaxBytes <= 0 {
		return c.lim.PackBytes, nil
	}
	used, err := c.hub.Size(c.grant.ID.Town)
	return c.grant.MaxBytes - used, err
}

// refuseList answers a list that can't be taken. git shows the body of an HTTP
// error to nobody here, so a client that can read a sideband gets it there.
func (c *gitCall) refuseList(list commandList, err error) error {
	if !list.Caps["side-band-64k"] || errs.KindOf(err) != errs.Invalid {
		return err
	}
	c.header(receivePack + "-result")
	var b bytes.Buffer
	band(&b, 3, oneLine(err.Error())+"\n")
	b.WriteString(flushPkt)
	_, _ = c.w.Write(b.Bytes()) // the client may have gone away
	return nil
}

// drain reads what the client still sends: it looks at the answer only when it
// is done sending. The body's own bound ends it.
func (c *gitCall) drain(in io.Reader) {
	// A failure here means the client is gone or over its limit; the answer goes out all the same.
	_, _ = io.Copy(io.Discard, in)
}
