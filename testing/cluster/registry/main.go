// Command registry is a container registry (CNCF Distribution) that keeps its content in a directory, for tests. It has
// no accounts and no TLS.
//
//	registry DIRECTORY ADDRESS
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
)

func main() {
	if len(os.Args) != 3 {
		fail("usage: registry DIRECTORY ADDRESS")
	}
	config := &configuration.Configuration{
		Storage: configuration.Storage{"filesystem": configuration.Parameters{"rootdirectory": os.Args[1]}},
	}
	config.HTTP.Addr = os.Args[2]
	config.HTTP.Secret = "of a single process"
	config.Log.Level = "warn"
	server, err := registry.NewRegistry(context.Background(), config)
	if err != nil {
		fail(err)
	}
	fail(server.ListenAndServe())
}

func fail(reason any) {
	fmt.Fprintln(os.Stderr, "registry:", reason)
	os.Exit(1)
}
