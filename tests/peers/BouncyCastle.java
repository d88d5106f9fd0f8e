// What Bouncy Castle makes and reads of CMS (RFC 5652, RFC 5083), for the tests: one verb a run, DER in, DER out.

import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.PrivateKey;
import java.security.Security;
import java.security.cert.CertificateFactory;
import java.security.cert.X509Certificate;
import java.security.spec.ECGenParameterSpec;
import java.security.spec.MGF1ParameterSpec;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.List;
import javax.crypto.Cipher;
import javax.crypto.spec.GCMParameterSpec;
import javax.crypto.spec.OAEPParameterSpec;
import javax.crypto.spec.PSource;
import org.bouncycastle.asn1.ASN1ObjectIdentifier;
import org.bouncycastle.asn1.ASN1OctetString;
import org.bouncycastle.asn1.cms.GCMParameters;
import org.bouncycastle.asn1.x509.AlgorithmIdentifier;
import org.bouncycastle.asn1.x509.SubjectPublicKeyInfo;
import org.bouncycastle.cert.jcajce.JcaCertStore;
import org.bouncycastle.cms.CMSAlgorithm;
import org.bouncycastle.cms.CMSAuthEnvelopedData;
import org.bouncycastle.cms.CMSAuthEnvelopedDataGenerator;
import org.bouncycastle.cms.CMSCompressedDataGenerator;
import org.bouncycastle.cms.CMSException;
import org.bouncycastle.cms.CMSEnvelopedData;
import org.bouncycastle.cms.CMSEnvelopedDataGenerator;
import org.bouncycastle.cms.CMSProcessableByteArray;
import org.bouncycastle.cms.CMSSignedData;
import org.bouncycastle.cms.CMSSignedDataGenerator;
import org.bouncycastle.cms.RecipientInfoGenerator;
import org.bouncycastle.cms.RecipientInformation;
import org.bouncycastle.cms.RecipientOperator;
import org.bouncycastle.cms.SignerInformation;
import org.bouncycastle.cms.jcajce.JcaSignerInfoGeneratorBuilder;
import org.bouncycastle.cms.jcajce.JcaSimpleSignerInfoVerifierBuilder;
import org.bouncycastle.cms.jcajce.JceCMSContentEncryptorBuilder;
import org.bouncycastle.cms.jcajce.JceKeyAgreeEnvelopedRecipient;
import org.bouncycastle.cms.jcajce.JceKeyAgreeRecipient;
import org.bouncycastle.cms.jcajce.JceKeyAgreeRecipientInfoGenerator;
import org.bouncycastle.cms.jcajce.JceKeyTransAuthEnvelopedRecipient;
import org.bouncycastle.cms.jcajce.JceKeyTransEnvelopedRecipient;
import org.bouncycastle.cms.jcajce.JceKeyTransRecipientInfoGenerator;
import org.bouncycastle.cms.jcajce.ZlibCompressor;
import org.bouncycastle.jcajce.io.CipherInputStream;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.operator.InputAEADDecryptor;
import org.bouncycastle.operator.OutputAEADEncryptor;
import org.bouncycastle.operator.OutputEncryptor;
import org.bouncycastle.operator.jcajce.JcaAlgorithmParametersConverter;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.operator.jcajce.JcaDigestCalculatorProviderBuilder;

public final class BouncyCastle {
    public static void main(String[] given) throws Exception {
        Security.addProvider(new BouncyCastleProvider());
        byte[] in = read("content");
        byte[] out = switch (given[0]) {
            case "sign" -> sign(in, given[1], given[2].equals("opaque"));
            case "verify" -> verify(in, given[1].equals("opaque"));
            case "encrypt" -> encrypt(in, given[1], given[2]);
            case "decrypt" -> decrypt(in);
            case "decrypt-authenticated" -> decryptAuthenticated(in);
            case "compress" -> new CMSCompressedDataGenerator()
                .generate(new CMSProcessableByteArray(in), new ZlibCompressor()).getEncoded();
            default -> throw new IllegalArgumentException(given[0]);
        };
        Files.write(Path.of("result"), out);
    }

    private static byte[] sign(byte[] content, String algorithm, boolean opaque) throws Exception {
        X509Certificate certificate = certificate();
        CMSSignedDataGenerator generator = new CMSSignedDataGenerator();
        generator.addSignerInfoGenerator(
            new JcaSignerInfoGeneratorBuilder(new JcaDigestCalculatorProviderBuilder().build())
                .build(new JcaContentSignerBuilder(algorithm).setProvider("BC").build(key()), certificate));
        generator.addCertificates(new JcaCertStore(List.of(certificate)));
        return generator.generate(new CMSProcessableByteArray(content), opaque).getEncoded();
    }

    private static byte[] verify(byte[] made, boolean opaque) throws Exception {
        CMSSignedData signed = opaque
            ? new CMSSignedData(made)
            : new CMSSignedData(new CMSProcessableByteArray(read("beside")), made);
        for (SignerInformation signer : signed.getSignerInfos()) {
            if (!signer.verify(new JcaSimpleSignerInfoVerifierBuilder().setProvider("BC").build(certificate()))) {
                throw new IllegalStateException("the signature is wrong");
            }
        }
        return opaque ? (byte[]) signed.getSignedContent().getContent() : read("beside");
    }

    private static byte[] encrypt(byte[] content, String cipher, String way) throws Exception {
        ASN1ObjectIdentifier algorithm = switch (cipher) {
            case "aes-128-cbc" -> CMSAlgorithm.AES128_CBC;
            case "aes-256-cbc" -> CMSAlgorithm.AES256_CBC;
            case "aes-128-gcm" -> CMSAlgorithm.AES128_GCM;
            case "aes-256-gcm" -> CMSAlgorithm.AES256_GCM;
            default -> throw new IllegalArgumentException(cipher);
        };
        OutputEncryptor encryptor = new JceCMSContentEncryptorBuilder(algorithm).setProvider("BC").build();
        CMSProcessableByteArray data = new CMSProcessableByteArray(content);
        if (encryptor instanceof OutputAEADEncryptor authenticated) {
            CMSAuthEnvelopedDataGenerator generator = new CMSAuthEnvelopedDataGenerator();
            generator.addRecipientInfoGenerator(recipient(way));
            return generator.generate(data, authenticated).getEncoded();
        }
        CMSEnvelopedDataGenerator generator = new CMSEnvelopedDataGenerator();
        generator.addRecipientInfoGenerator(recipient(way));
        return generator.generate(data, encryptor).getEncoded();
    }

    private static RecipientInfoGenerator recipient(String way) throws Exception {
        X509Certificate certificate = certificate();
        JcaAlgorithmParametersConverter converter = new JcaAlgorithmParametersConverter();
        return switch (way) {
            case "rsa" -> new JceKeyTransRecipientInfoGenerator(certificate).setProvider("BC");
            case "oaep-sha1", "oaep-sha256" -> {
                String digest = way.equals("oaep-sha1") ? "SHA-1" : "SHA-256";
                AlgorithmIdentifier oaep = converter.getAlgorithmIdentifier(
                    new ASN1ObjectIdentifier("1.2.840.113549.1.1.7"),
                    new OAEPParameterSpec(digest, "MGF1", new MGF1ParameterSpec(digest), PSource.PSpecified.DEFAULT));
                yield new JceKeyTransRecipientInfoGenerator(certificate, oaep).setProvider("BC");
            }
            case "ecdh-sha256", "ecdh-sha384" -> {
                KeyPairGenerator pairs = KeyPairGenerator.getInstance("EC", "BC");
                pairs.initialize(new ECGenParameterSpec("P-256"));
                KeyPair pair = pairs.generateKeyPair();
                yield new JceKeyAgreeRecipientInfoGenerator(
                    way.equals("ecdh-sha256") ? CMSAlgorithm.ECDH_SHA256KDF : CMSAlgorithm.ECDH_SHA384KDF,
                    pair.getPrivate(), pair.getPublic(), CMSAlgorithm.AES256_WRAP)
                    .addRecipient(certificate).setProvider("BC");
            }
            default -> throw new IllegalArgumentException(way);
        };
    }

    private static byte[] decrypt(byte[] made) throws Exception {
        RecipientInformation recipient = new CMSEnvelopedData(made).getRecipientInfos().iterator().next();
        PrivateKey key = key();
        return key.getAlgorithm().equals("RSA")
            ? recipient.getContent(new JceKeyTransEnvelopedRecipient(key).setProvider("BC"))
            : recipient.getContent(new JceKeyAgreeEnvelopedRecipient(key).setProvider("BC"));
    }

    private static byte[] decryptAuthenticated(byte[] made) throws Exception {
        RecipientInformation recipient = new CMSAuthEnvelopedData(made).getRecipientInfos().iterator().next();
        PrivateKey key = key();
        return key.getAlgorithm().equals("RSA")
            ? recipient.getContent(new JceKeyTransAuthEnvelopedRecipient(key).setProvider("BC"))
            : recipient.getContent(new KeyAgreeAuthEnvelopedRecipient(key).setProvider("BC"));
    }

    /** What release 1.72 has for transported keys alone: GCM under an agreed key, put together of its own parts. */
    private static final class KeyAgreeAuthEnvelopedRecipient extends JceKeyAgreeRecipient {
        KeyAgreeAuthEnvelopedRecipient(PrivateKey key) {
            super(key);
        }

        @Override
        public RecipientOperator getRecipientOperator(
            AlgorithmIdentifier wrap, AlgorithmIdentifier cipher, SubjectPublicKeyInfo sender, ASN1OctetString ukm, byte[] key)
            throws CMSException {
            try {
                GCMParameters parameters = GCMParameters.getInstance(cipher.getParameters());
                Cipher gcm = Cipher.getInstance("AES/GCM/NoPadding", "BC");
                gcm.init(Cipher.DECRYPT_MODE, extractSecretKey(wrap, cipher, sender, ukm, key),
                    new GCMParameterSpec(8 * parameters.getIcvLen(), parameters.getNonce()));
                return new RecipientOperator(new Decryptor(cipher, gcm));
            } catch (GeneralSecurityException error) {
                throw new CMSException("no cipher", error);
            }
        }
    }

    private static final class Decryptor implements InputAEADDecryptor {
        private final AlgorithmIdentifier identifier;
        private final Cipher gcm;

        Decryptor(AlgorithmIdentifier identifier, Cipher gcm) {
            this.identifier = identifier;
            this.gcm = gcm;
        }

        @Override
        public AlgorithmIdentifier getAlgorithmIdentifier() {
            return identifier;
        }

        @Override
        public InputStream getInputStream(InputStream data) {
            return new CipherInputStream(data, gcm);
        }

        @Override
        public OutputStream getAADStream() {
            return new OutputStream() {
                @Override
                public void write(int octet) {
                    gcm.updateAAD(new byte[] {(byte) octet});
                }
            };
        }

        @Override
        public byte[] getMAC() {
            return null; // the stream of the content ends with it, and the cipher checks it there
        }
    }

    private static PrivateKey key() throws Exception {
        byte[] der = read("key");
        try {
            return KeyFactory.getInstance("RSA", "BC").generatePrivate(new PKCS8EncodedKeySpec(der));
        } catch (java.security.spec.InvalidKeySpecException notRsa) {
            return KeyFactory.getInstance("EC", "BC").generatePrivate(new PKCS8EncodedKeySpec(der));
        }
    }

    private static X509Certificate certificate() throws Exception {
        return (X509Certificate) CertificateFactory.getInstance("X.509")
            .generateCertificate(new ByteArrayInputStream(read("certificate")));
    }

    private static byte[] read(String name) throws Exception {
        return Files.readAllBytes(Path.of(name));
    }
}
