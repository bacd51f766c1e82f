// Coatcheck signs people in with OpenID Connect in front of web apps, keeps their
// sessions where any node can serve them, and tells the apps who the user is.
//
// Usage:
//
//	coatcheck dev                      try it: proxy, provider and app on this machine
//	coatcheck serve --config FILE      run a node
//	coatcheck check --config FILE      say what is wrong with a configuration
//	coatcheck key new FILE             make the key ring that all nodes share
//	coatcheck key rotate FILE          add a key to it, which seals from a later time on
//	coatcheck key list FILE            say which keys it has
//	coatcheck key retire KEY           take an old one out
//	coatcheck session list --config FILE
//	                                   say who is signed in
//	coatcheck session end --config FILE
//	                                   end somebody's sessions
//	coatcheck store migrate --config FILE
//	                                   make the tables of PostgreSQL, or bring them up to date
//	coatcheck store audit --config FILE
//	                                   compare the list of sessions with what the store keeps
//	coatcheck version                  print the version
//	coatcheck dev-provider, dev-app    the parts of dev, each alone
//
// It exits with 0 when all went well, 1 when something failed, and 2 when it was
// called in a way it does not understand.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

type commands struct {
	Dev         devCmd         `cmd:"" help:"Try coatcheck: start the proxy, a development provider and a sample app on this machine."`
	Serve       serveCmd       `cmd:"" help:"Run a node."`
	Check       checkCmd       `cmd:"" help:"Say what is wrong with a configuration, and what it means."`
	Key         keyCmd         `cmd:"" help:"Look after the keys that nodes share."`
	Session     sessionCmd     `cmd:"" help:"See who is signed in, and end somebody's sessions."`
	Store       storeCmd       `cmd:"" help:"Look after the store."`
	Version     versionCmd     `cmd:"" help:"Print the version."`
	DevProvider devProviderCmd `cmd:"" help:"Run the development provider alone, on loopback."`
	DevApp      devAppCmd      `cmd:"" help:"Run the sample app alone."`

	VersionFlag kong.VersionFlag `name:"version" help:"Print the version."`
}

// console is where a command talks to the person who called it.
type console struct {
	out io.Writer
	err io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], console{os.Stdout, os.Stderr}))
}

// run executes one command and returns the exit status.
func run(ctx context.Context, args []string, con console) int {
	switch {
	case len(args) == 0: // somebody who looks what there is
		run(ctx, []string{"--help"}, console{con.err, con.err})
		return exitUsage
	case args[0] == "help":
		args = append(slices.Clone(args[1:]), "--help")
	}
	var exited *int
	parser, err := kong.New(&commands{},
		kong.Name("coatcheck"),
		kong.Description("Sessions and sign-in in front of web apps."),
		kong.Writers(con.out, con.err),
		kong.Exit(func(code int) { exited = &code }), // after --help
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(con),
		kong.Vars{"version": "coatcheck " + version()})
	if err != nil {
		panic(err) // the structs above contradict themselves
	}
	call, err := parser.Parse(args)
	if exited != nil {
		return *exited
	}
	if err == nil {
		err = onlyOnce(call)
	}
	if err != nil {
		fmt.Fprintf(con.err, "coatcheck: %v\nTry: coatcheck %s\n", explainCall(err), helpFor(err))
		return exitUsage
	}
	switch err := call.Run(); {
	case err == nil:
		return exitOK
	case !errors.Is(err, errLogged):
		fmt.Fprintf(con.err, "coatcheck: %v\n", err)
	}
	return exitFailed
}

// onlyOnce refuses a flag that is given twice and has one value: kong would go by the last.
func onlyOnce(call *kong.Context) error {
	seen := map[*kong.Flag]bool{}
	for _, p := range call.Path {
		if p.Flag == nil || p.Flag.IsCumulative() || p.Flag.IsBool() {
			continue
		}
		if seen[p.Flag] {
			return &usageError{fmt.Errorf("--%s is given more than once", p.Flag.Name), call}
		}
		seen[p.Flag] = true
	}
	return nil
}

// A usageError is one of a call that kong understood.
type usageError struct {
	error
	call *kong.Context
}

// explainCall adds what somebody meant who names the configuration without its flag.
func explainCall(err error) error {
	var wrong *kong.ParseError
	if !errors.As(err, &wrong) || wrong.Context.Selected() == nil {
		return err
	}
	file, unexpected := strings.CutPrefix(err.Error(), "unexpected argument ")
	for _, flag := range wrong.Context.Selected().Flags {
		if unexpected && flag.Name == "config" && !flag.Set {
			return fmt.Errorf("%w: if it is the configuration, say --config %s", err, file)
		}
	}
	return err
}

// helpFor is the call that explains the command which was called wrongly.
func helpFor(err error) string {
	var call *kong.Context
	if wrong := (*kong.ParseError)(nil); errors.As(err, &wrong) {
		call = wrong.Context
	} else if wrong := (*usageError)(nil); errors.As(err, &wrong) {
		call = wrong.call
	}
	if call == nil || call.Command() == "" {
		return "--help"
	}
	command, _, _ := strings.Cut(call.Command(), " <") // without its arguments
	return command + " --help"
}

type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(con console) error {
	fmt.Fprintln(con.out, "coatcheck", version())
	return nil
}

// version is the module's version as the Go toolchain recorded it, or "devel".
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
