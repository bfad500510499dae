# The image of a sandbox: gastown, git, ripgrep, jq, Node and coding agents.
#
#   docker build -t gastown:local .                                  # opencode, claude and codex
#   docker build -t gastown:local --build-arg AGENTS=opencode-ai .   # packages of tools/agents/package.json
#   docker build -t gastown:local --build-arg AGENTS= .              # none
#
# What your gates need (a compiler, a test runner) belongs in it, too: build a
# layer of your own on top. "make image" makes a smaller one without a registry.
ARG GO=1.26
ARG NODE=22

FROM golang:${GO}-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=docker
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /gastown ./cmd/gastown

FROM node:${NODE}-bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git jq ripgrep procps \
    && rm -rf /var/lib/apt/lists/*
ARG AGENTS="opencode-ai @agentclientprotocol/claude-agent-acp @agentclientprotocol/codex-acp"
COPY tools/agents /tmp/agents
RUN for a in ${AGENTS}; do \
      v=$(jq -er --arg a "$a" '.dependencies[$a]' /tmp/agents/package.json) \
        || { echo "no agent $a in tools/agents/package.json" >&2; exit 1; }; \
      set -- "$@" "$a@$v"; \
    done \
    && if [ $# -gt 0 ]; then npm install --global "$@"; fi \
    && npm cache clean --force && rm -rf /tmp/agents /root/.npm
# node:*-slim has a user 1000 of its own, "node"; the runner is 1000, agents have others.
RUN usermod --login runner --home /town/home node && groupmod --new-name runner node \
    && mkdir /town
COPY --from=build /gastown /usr/local/bin/gastown
RUN ln -s /usr/local/bin/gastown /usr/local/bin/gt
# Each run has a user of its own; programs of Node end when theirs has no name.
RUN for id in $(seq 10001 10256); do \
      echo "agent$id:x:$id:$id::/town/home:/bin/sh" >>/etc/passwd; echo "agent$id:x:$id:" >>/etc/group; \
    done
ENTRYPOINT ["/usr/local/bin/gastown", "sandbox-init", "--uid=1000", "--apart"]
