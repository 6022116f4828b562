// Command program is what runs in the pods of tests/kubelet: one static file, nothing beside it.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

func main() {
	commands := map[string]func([]string) error{"serve": serve, "get": get, "api": api, "eat": eat}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fail(fmt.Errorf("usage: program serve FOLDER | get URL... | api PATH | eat MIB"))
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fail(err)
	}
}

// serve answers on port 8080 with the host's name; /starts tells how often it began, as counted in
// a file of FOLDER. It ends on SIGTERM and leaves the file "ended" there.
func serve(words []string) error {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	counter := filepath.Join(words[0], "starts")
	file, err := os.OpenFile(counter, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := file.WriteString("x"); err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	http.HandleFunc("/", func(answer http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(answer, name)
	})
	http.HandleFunc("/starts", func(answer http.ResponseWriter, _ *http.Request) {
		data, err := os.ReadFile(counter)
		fmt.Fprintln(answer, len(data), err)
	})
	failed := make(chan error, 1)
	go func() { failed <- http.ListenAndServe(":8080", nil) }()
	fmt.Printf("%s serves as user %d\n", name, os.Getuid())
	select {
	case err := <-failed:
		return err
	case <-ended:
		return os.WriteFile(filepath.Join(words[0], "ended"), []byte(name), 0o600)
	}
}

// get prints what each URL answers.
func get(words []string) error {
	client := http.Client{Timeout: 60 * time.Second}
	for _, url := range words {
		answer, err := client.Get(url)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			return err
		}
		os.Stdout.Write(body)
	}
	return nil
}

// api prints what the API server answers to the pod's service account.
func api(words []string) error {
	const account = "/var/run/secrets/kubernetes.io/serviceaccount/"
	authority, err := os.ReadFile(account + "ca.crt")
	if err != nil {
		return err
	}
	token, err := os.ReadFile(account + "token")
	if err != nil {
		return err
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(authority)
	client := http.Client{
		Timeout:   60 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}},
	}
	request, err := http.NewRequest("GET", "https://kubernetes.default.svc"+words[0], nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+string(token))
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

// eat takes so many MiB of memory and keeps them.
func eat(words []string) error {
	count, err := strconv.Atoi(words[0])
	if err != nil {
		return err
	}
	var kept [][]byte
	for range count {
		block := make([]byte, 1<<20)
		for at := 0; at < len(block); at += 4096 {
			block[at] = 1
		}
		kept = append(kept, block)
	}
	fmt.Printf("%d MiB taken\n", len(kept))
	time.Sleep(time.Hour)
	return nil
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
