package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

const (
	oldRevision = "etcdserver: revision of auth store is old"
	verifyOnly  = "auth: token signing attempted with verify-only key"
)

// keyFiles makes a pair of keys for a method; the private one in the oldest form that there is for it.
func keyFiles(t *testing.T, method string) (private, public string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	must := func(der []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	var pub crypto.PublicKey
	switch method {
	case "HS256":
		path := filepath.Join(dir, "secret")
		if err := os.WriteFile(path, []byte("a shared secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path, ""
	case "ES256", "ES384":
		curve := elliptic.P256()
		if method == "ES384" {
			curve = elliptic.P384()
		}
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		pub = key.Public()
		private = write("private.pem", "EC PRIVATE KEY", must(x509.MarshalECPrivateKey(key)))
	case "EdDSA":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		pub = key.Public()
		private = write("private.pem", "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key)))
	default:
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		pub = key.Public()
		private = write("private.pem", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
	}
	return private, write("public.pem", "PUBLIC KEY", must(x509.MarshalPKIXPublicKey(pub)))
}

// Tokens signed by either server are taken by both, and end for keys with the next change.
func TestSignedTokensAreEtcds(t *testing.T) {
	for _, method := range []string{"RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA", "HS256"} {
		t.Run(method, func(t *testing.T) {
			private, public := keyFiles(t, method)
			option := "--auth-token=jwt,sign-method=" + method + ",priv-key=" + private + ",ttl=10m"
			if public != "" {
				option += ",pub-key=" + public
			}
			p := startPair(t, option)
			p.enable()
			p.ok("root", "add role", roleAdd("r"))
			p.ok("root", "grant", grantPermission("r", authpb.READWRITE, "a", ""))
			p.ok("root", "add user", userAdd("alice", "x"))
			p.ok("root", "grant", grantRole("alice", "r"))
			if err := p.login("alice", "x"); err != nil {
				t.Fatal(err)
			}
			put := putOf(&pb.PutRequest{Key: []byte("a")})
			get := func(c caller) (proto.Message, error) {
				return c.kv().Range(c.ctx, &pb.RangeRequest{Key: []byte("a")})
			}
			p.ok("alice", "put", put)
			p.refused("alice", permissionDenied, "put", putOf(&pb.PutRequest{Key: []byte("b")}))
			// Each server gets the other's token.
			p.tokens["crossed"] = [2]string{p.tokens["alice"][1], p.tokens["alice"][0]}
			p.ok("crossed", "put", put)
			p.ok("crossed", "get", get)
			p.ok("root", "a change", roleAdd("other"))
			for _, user := range []string{"alice", "crossed", "root"} {
				p.refused(user, oldRevision, "put", put)
				p.refused(user, oldRevision, "get", get)
				p.refused(user, oldRevision, "stream", func(c caller) (proto.Message, error) {
					return rangeStream(c, &pb.RangeRequest{Key: []byte("a")})
				})
				p.refused(user, oldRevision, "txn", func(c caller) (proto.Message, error) {
					compare := &pb.Compare{Key: []byte("a"), TargetUnion: &pb.Compare_Version{}}
					return c.kv().Txn(c.ctx, &pb.TxnRequest{Compare: []*pb.Compare{compare}})
				})
				_, _ = p.do(user, "watch", func(c caller) (proto.Message, error) {
					return watch(c, &pb.WatchCreateRequest{Key: []byte("a")})
				})
			}
			p.ok("root", "what concerns no key", userList)
			p.ok("alice", "get oneself", userGet("alice"))
			p.ok("root", "a new password", userPassword("alice", "y"))
			p.ok("alice", "get oneself", userGet("alice"))
			p.refused(forger, invalidAuthToken, "get", get)
			p.tokens["simple"] = [2]string{"abcdefghijklmnop.3", "abcdefghijklmnop.3"}
			p.refused("simple", invalidAuthToken, "get", get)
		})
	}
}

// With the public key alone tokens are taken and none is made.
func TestPublicKeyAloneMakesNoToken(t *testing.T) {
	_, public := keyFiles(t, "RS256")
	p := startPair(t, "--auth-token=jwt,sign-method=RS256,pub-key="+public)
	p.ok(nobody, "add root", userAdd("root", "toor"))
	p.ok(nobody, "grant root", grantRole("root", "root"))
	p.ok(nobody, "enable", authEnable)
	p.refused(nobody, verifyOnly, "authenticate", func(c caller) (proto.Message, error) {
		return c.auth().Authenticate(c.ctx, &pb.AuthenticateRequest{Name: "root", Password: "toor"})
	})
	if err := p.login("root", "wrong"); err == nil {
		t.Error("login with a wrong password")
	}
}
