package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority is a certificate authority of one run, as kubeadm makes one for etcd and one for Kubernetes.
type authority struct {
	dir    string // where it writes its files
	cert   *x509.Certificate
	key    crypto.Signer
	caFile string
}

func newAuthority(dir, name string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &authority{dir: dir, key: key, caFile: filepath.Join(dir, "ca.crt")}
	template := template(pkix.Name{CommonName: name})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return a, writePEM(a.caFile, "CERTIFICATE", der)
}

func template(subject pkix.Name) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
}

// pair names the files of a certificate and its key.
type pair struct{ cert, key string }

// issue makes a certificate for both ends of a connection, valid for the loopback address.
func (a *authority) issue(name, organization string) (pair, error) {
	files := pair{filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return files, err
	}
	subject := pkix.Name{CommonName: name}
	if organization != "" {
		subject.Organization = []string{organization}
	}
	template := template(subject)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.DNSNames = []string{"localhost"}
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return files, err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return files, err
	}
	if err := writePEM(files.cert, "CERTIFICATE", der); err != nil {
		return files, err
	}
	return files, writePEM(files.key, "EC PRIVATE KEY", private)
}

// clientTLS trusts only this authority and shows the given pair.
func (a *authority) clientTLS(files pair) (*tls.Config, error) {
	certificate, err := tls.LoadX509KeyPair(files.cert, files.key)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{certificate}}, nil
}

// issueSigningKey makes the RSA key that signs service account tokens.
func issueSigningKey(dir string) (pair, error) {
	files := pair{filepath.Join(dir, "sa.pub"), filepath.Join(dir, "sa.key")}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return files, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return files, err
	}
	if err := writePEM(files.cert, "PUBLIC KEY", public); err != nil {
		return files, err
	}
	return files, writePEM(files.key, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
