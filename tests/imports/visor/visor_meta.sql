/*M!999999\- enable the sandbox mode */ 
-- MariaDB dump 10.19  Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)
--
-- Host: localhost    Database: visor
-- ------------------------------------------------------
-- Server version	10.11.19-MariaDB-0+deb12u1

/*!40101 SET @OLD_CHARACTER_SET_CLIENT=@@CHARACTER_SET_CLIENT */;
/*!40101 SET @OLD_CHARACTER_SET_RESULTS=@@CHARACTER_SET_RESULTS */;
/*!40101 SET @OLD_COLLATION_CONNECTION=@@COLLATION_CONNECTION */;
/*!40101 SET NAMES utf8mb4 */;
/*!40103 SET @OLD_TIME_ZONE=@@TIME_ZONE */;
/*!40103 SET TIME_ZONE='+00:00' */;
/*!40014 SET @OLD_UNIQUE_CHECKS=@@UNIQUE_CHECKS, UNIQUE_CHECKS=0 */;
/*!40014 SET @OLD_FOREIGN_KEY_CHECKS=@@FOREIGN_KEY_CHECKS, FOREIGN_KEY_CHECKS=0 */;
/*!40101 SET @OLD_SQL_MODE=@@SQL_MODE, SQL_MODE='NO_AUTO_VALUE_ON_ZERO' */;
/*!40111 SET @OLD_SQL_NOTES=@@SQL_NOTES, SQL_NOTES=0 */;

--
-- Table structure for table `images`
--

DROP TABLE IF EXISTS `images`;
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `images` (
  `_id` varchar(45) NOT NULL,
  `uri` varchar(255) DEFAULT NULL,
  `name` varchar(45) NOT NULL,
  `architecture` varchar(45) NOT NULL,
  `access` varchar(45) NOT NULL,
  `type` varchar(45) DEFAULT NULL,
  `format` varchar(45) DEFAULT NULL,
  `store` varchar(45) DEFAULT NULL,
  `location` varchar(255) DEFAULT NULL,
  `kernel` varchar(45) DEFAULT NULL,
  `ramdisk` varchar(45) DEFAULT NULL,
  `owner` varchar(45) DEFAULT NULL,
  `status` varchar(45) DEFAULT NULL,
  `size` int(11) DEFAULT NULL,
  `created_at` datetime DEFAULT NULL,
  `uploaded_at` datetime DEFAULT NULL,
  `updated_at` datetime DEFAULT NULL,
  `accessed_at` datetime DEFAULT NULL,
  `access_count` int(11) DEFAULT 0,
  `checksum` varchar(255) DEFAULT NULL,
  `others` varchar(255) DEFAULT NULL,
  PRIMARY KEY (`_id`),
  KEY `by_name` (`name`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;

--
-- Dumping data for table `images`
--

LOCK TABLES `images` WRITE;
/*!40000 ALTER TABLE `images` DISABLE KEYS */;
INSERT INTO `images` VALUES
('0da751f8-2039-495d-8567-8cc291f9d72a','http://10.0.0.1:4568/images/0da751f8-2039-495d-8567-8cc291f9d72a','with bytes','x86_64','public',NULL,'iso','file','file:///srv/visor/0da751f8-2039-495d-8567-8cc291f9d72a.iso',NULL,NULL,'foo','available',11,'2012-07-02 09:14:46','2012-07-02 09:14:46','2012-07-02 09:14:46','2012-07-02 09:14:47',3,'1a8170f6b425d667b1aba297dbe4ff88',NULL),
('f4756791-ebdf-4f5b-9bd4-3c395b10648a','http://10.0.0.1:4568/images/f4756791-ebdf-4f5b-9bd4-3c395b10648a','meta only','i386','public',NULL,NULL,NULL,NULL,NULL,NULL,'foo','locked',NULL,'2012-07-02 09:14:46',NULL,NULL,NULL,0,NULL,NULL),
('f6e1a3d2-0c51-4a0e-9d60-0e3c4f1a2b3c','http://10.0.0.1:4568/images/f6e1a3d2-0c51-4a0e-9d60-0e3c4f1a2b3c','it\'s; \"quoted\" \\ `é`','i386','public',NULL,NULL,NULL,NULL,NULL,NULL,'foo','locked',NULL,'2012-07-02 09:14:46',NULL,NULL,NULL,0,NULL,'{\"note\":\"don\'t; stop\"}'),
('f9a1b2c3-d4e5-4f60-8a7b-1c2d3e4f5a6b','http://10.0.0.1:4568/images/f9a1b2c3-d4e5-4f60-8a7b-1c2d3e4f5a6b','private','x86_64','private','machine','raw','file','file:///srv/visor/f9a1b2c3-d4e5-4f60-8a7b-1c2d3e4f5a6b.raw',NULL,NULL,'bar','available',7,'2012-07-02 10:00:00','2012-07-02 10:00:00','2012-07-02 10:00:00',NULL,0,'2c17c6393771ee3048ae34d6b380c5ec','{\"distro\":\"debian\"}');
/*!40000 ALTER TABLE `images` ENABLE KEYS */;
UNLOCK TABLES;

--
-- Table structure for table `users`
--

DROP TABLE IF EXISTS `users`;
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `users` (
  `_id` varchar(45) DEFAULT NULL,
  `note` text DEFAULT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;

--
-- Dumping data for table `users`
--

LOCK TABLES `users` WRITE;
/*!40000 ALTER TABLE `users` DISABLE KEYS */;
INSERT INTO `users` VALUES
('1','it\'s; INSERT INTO `images` VALUES (0);');
/*!40000 ALTER TABLE `users` ENABLE KEYS */;
UNLOCK TABLES;
/*!40103 SET TIME_ZONE=@OLD_TIME_ZONE */;

/*!40101 SET SQL_MODE=@OLD_SQL_MODE */;
/*!40014 SET FOREIGN_KEY_CHECKS=@OLD_FOREIGN_KEY_CHECKS */;
/*!40014 SET UNIQUE_CHECKS=@OLD_UNIQUE_CHECKS */;
/*!40101 SET CHARACTER_SET_CLIENT=@OLD_CHARACTER_SET_CLIENT */;
/*!40101 SET CHARACTER_SET_RESULTS=@OLD_CHARACTER_SET_RESULTS */;
/*!40101 SET COLLATION_CONNECTION=@OLD_COLLATION_CONNECTION */;
/*!40111 SET SQL_NOTES=@OLD_SQL_NOTES */;

-- Dump completed on 2026-11-22 22:33:08
